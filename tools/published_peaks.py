"""Writes the published peaks that the package ships, from the reference repository's stored statistics.

`python -m tools.published_peaks FOLDER quantaudit/card/published/peaks.json --revision COMMIT`, where FOLDER holds its
`*_top5_stats.json`, gzipped or not, at any depth. That repository names no license: its files stay where they are, and
only the largest value of each tensor is kept, with its source.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.card.published.records import Published, PublishedModel, PublishedSubset
from quantaudit.card.published.reference import read_reference
from quantaudit.common.files import write_text

SOURCE = "arXiv 2605.15572, reference repository, 5,000 samples, bf16"
REPOSITORY = "https://github.com/clx1415926/Max_act_llm"
FULL = 5000
FAMILIES = (
    (r"Qwen2\.5-VL-.*", "Qwen2.5-VL"),
    (r"Qwen2\.5-.*", "Qwen2.5"),
    (r"Qwen3\.5-.*", "Qwen3.5"),
    (r"Qwen3-.*", "Qwen3"),
    (r"gemma-2.*", "Gemma2"),
    (r"gemma-3-.*", "Gemma3"),
    (r"gpt-oss-.*", "GPT-OSS"),
    (r"Ling-.*", "Ling"),
)
"""The paper's eight families in its order, by the names of their checkpoints."""
ORDER = ("Qwen2.5", "Qwen2.5-VL", "Qwen3", "Qwen3.5", "Gemma2", "Gemma3", "GPT-OSS", "Ling")
NOT_MAIN = r"Qwen2\.5-.*-Instruct"
"""Checkpoints that the paper sets against their base apart from its main analysis."""


def collect(folder: Path, revision: str) -> Published:
    """All files below a folder: checkpoints over all samples, and parts of them by their number and repeat."""
    models: dict[str, PublishedModel] = {}
    subsets: list[PublishedSubset] = []
    for path in sorted([*folder.rglob("*_top5_stats.json"), *folder.rglob("*_top5_stats.json.gz")]):
        row = read_reference(path)
        if row.samples == FULL:
            models[row.model] = row.model_copy(update={"family": _family(row), "main": _main(row)})
        elif (largest := row.largest()) is not None:
            repeat = _repeat(path.relative_to(folder))
            subsets.append(
                PublishedSubset(model=row.model, samples=row.samples, repeat=repeat, value=largest.value),
            )
    return Published(
        source=SOURCE,
        repository=REPOSITORY,
        revision=revision,
        models=sorted(models.values(), key=_order),
        subsets=sorted(subsets, key=lambda row: (row.model, row.samples, row.repeat)),
    )


def _family(row: PublishedModel) -> str:
    return next(family for pattern, family in FAMILIES if re.fullmatch(pattern, row.model))


def _main(row: PublishedModel) -> bool:
    return re.fullmatch(NOT_MAIN, row.model) is None


def _repeat(path: Path) -> int:
    match = re.search(r"(?:^|[/-])r(\d+)(?=[/-])", path.as_posix())
    if match is None:
        raise typer.BadParameter(f"{path}: which repeat it is cannot be seen from its path")
    return int(match[1])


def _order(row: PublishedModel) -> tuple[int, bool, float, str]:
    """By family, dense models first, by the size that the name has: billions of parameters, or tokens in trillions."""
    sizes = re.findall(r"(?<=-)(\d+(?:\.\d+)?)[bBT]", row.model)
    return ORDER.index(_family(row)), row.model_type.endswith("_moe"), float(sizes[0]) if sizes else 0.0, row.model


def to_json(data: Published) -> str:
    """One checkpoint, and one part, a line: small, and a change shows where it is."""
    rows = {name: [json.dumps(row.model_dump(), ensure_ascii=False) for row in getattr(data, name)] for name in _LISTS}
    head = {key: value for key, value in data.model_dump().items() if key not in _LISTS}
    parts = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    parts += [f" {json.dumps(name)}: [\n  " + ",\n  ".join(lines) + "\n ]" for name, lines in rows.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


_LISTS = ("models", "subsets")


def main(
    folder: Annotated[Path, typer.Argument(help="Folder of the reference repository's stored statistics.")],
    path: Annotated[Path, typer.Argument(help="File to write.")],
    revision: Annotated[str, typer.Option(help="Commit of the reference repository.")],
) -> None:
    """Write the published peaks as JSON."""
    write_text(path, to_json(collect(folder, revision)))


if __name__ == "__main__":
    typer.run(main)
