"""How long `quantaudit gate` takes beyond importing llm-compressor, on the card of a model of many layers.

python benchmarks/gate.py CARD [--layers 64] [--recipe R.yaml] [--runs N]

CARD is any card; its last decoder layer is repeated until there are enough. Fresh processes, interleaved: one imports
llm-compressor's recipes and nothing else, the other gates. Exits with 1 when the median difference is above 2 s. On a
busy machine trust the processor's time, which is printed next to it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import typer

from quantaudit.common.resources import resource_dir

LIMIT = 2.0
RECIPE = resource_dir("recipes") / "w8a8_mixed.yaml"
IMPORT = [sys.executable, "-c", "from llmcompressor.recipe import Recipe"]


def main(
    card: Annotated[Path, typer.Argument(help="card.json of any model of decoder layers.")],
    layers: int = 64,
    recipe: Annotated[Path, typer.Option()] = RECIPE,
    runs: int = 5,
) -> None:
    """Print the median time of both, and the difference."""
    with tempfile.TemporaryDirectory() as folder:
        stretched = Path(folder) / "card.json"
        stretched.write_text(json.dumps(stretch(json.loads(card.read_text(encoding="utf-8")), layers)), "utf-8")
        gate = [sys.executable, "-m", "quantaudit", "gate", str(recipe), "--card", str(stretched), "--format", "json"]
        times: dict[str, list[tuple[float, float]]] = {"import": [], "gate": []}
        for _ in range(runs + 1):
            for name, command, codes in (("import", IMPORT, (0,)), ("gate", gate, (0, 1, 3))):
                start, before = perf_counter(), processor_time()
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                times[name].append((perf_counter() - start, processor_time() - before))
                if done.returncode not in codes:
                    raise SystemExit(f"{name} failed: {done.stderr}")
        report = json.loads(done.stdout)
    # The first round fills the file cache.
    (bare, bare_cpu), (whole, whole_cpu) = (
        tuple(map(median, zip(*times[name][1:], strict=True))) for name in ("import", "gate")
    )
    size = stretched_size(report)
    print(f"{layers} layers, {size}: importing llm-compressor {bare:.2f} s, quantaudit gate {whole:.2f} s")
    print(f"beyond importing: {whole - bare:.2f} s (limit {LIMIT:.0f} s), median of {runs} runs")
    print(f"processor time: {bare_cpu:.2f} s and {whole_cpu:.2f} s, beyond importing {whole_cpu - bare_cpu:.2f} s")
    raise SystemExit(whole - bare > LIMIT)


def processor_time() -> float:
    """Seconds that finished child processes have computed."""
    spent = os.times()
    return spent.children_user + spent.children_system


def stretched_size(report: dict[str, Any]) -> str:
    """How much was gated, in words."""
    return f"{report['linears']:,} Linears, {sum(use['modules'] for use in report['quantized']):,} of them quantized"


def stretch(card: dict[str, Any], layers: int) -> dict[str, Any]:
    """The card with its last decoder layer repeated under new numbers, in every list of rows that name one."""
    present = [row["layer"] for row in card["sites"] if row["kind"] == "residual"]
    last = max(present)
    (block,) = {row["module"] for row in card["sites"] if row["kind"] == "residual" and row["layer"] == last}
    root = block.removesuffix(f".{last}")
    places = (
        (card["model"], "modules"),
        (card, "sites"),
        (card, "scales"),
        (card["simulation"], "sites"),
        (card["simulation"], "groups"),
    )
    for index in range(last + 1, layers):
        for holder, key in places:
            holder[key] += [copy(row, last, index, root) for row in holder[key] if of_layer(row, last, root)]
    card["model"]["layers"] = max(layers, last + 1)
    return card


def of_layer(row: dict[str, Any], layer: int, root: str) -> bool:
    """Whether a row is about this decoder layer."""
    name = row.get("name") or row.get("group") or ""
    return bool(re.match(rf"(layers|{re.escape(root)})\.{layer}(\.|$)", name))


def copy(row: dict[str, Any], layer: int, index: int, root: str) -> dict[str, Any]:
    """The row with one layer's number exchanged for another's."""
    text = json.dumps(row).replace(f'"layer": {layer}', f'"layer": {index}')
    renamed = re.sub(rf'"(layers|{re.escape(root)})\.{layer}(?=[."])', rf'"\g<1>.{index}', text)
    made: dict[str, Any] = json.loads(renamed)
    return made


if __name__ == "__main__":
    typer.run(main)
