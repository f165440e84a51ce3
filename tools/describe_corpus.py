"""The numbers of docs/corpus.md, counted: `python -m tools.describe_corpus docs/corpus.md` writes them again.

Tokens are counted with the demo checkpoint's tokenizer, so its package must be installed; no weights are read.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median_low
from typing import Annotated, Any

import typer

from quantaudit.common.files import write_text
from quantaudit.corpus.load import BUILTIN, load_corpus
from quantaudit.corpus.tokens import TextReaders, tokenize
from quantaudit.provenance import Split
from tools.generate_corpus import OUTPUT

BEGIN, END = "<!-- counted -->", "<!-- /counted -->"
RUN = 8
"""Words in a row that two samples may not share by accident."""
MAX_LENGTH = 2048
"""Where `report` cuts a sample by default."""
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
_NAMES = (
    "ar Arabic|de German|el Greek|en English|es Spanish|fr French|he Hebrew|hi Hindi|id Indonesian|it Italian"
    "|ja Japanese|ko Korean|nl Dutch|pl Polish|pt Portuguese|ru Russian|sv Swedish|th Thai|tr Turkish|uk Ukrainian"
    "|vi Vietnamese|zh Chinese"
)
LANGUAGES = dict(name.split(" ", 1) for name in _NAMES.split("|"))
# Thai, Japanese and Chinese write no spaces: there a character counts as a word.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]|\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One sample of the built-in corpus. tokens: with the model's special tokens and chat template, uncut."""

    id: str
    domain: str
    language: str
    split: Split
    tokens: int
    text: str


def raw_rows() -> Iterator[dict[str, Any]]:
    """The built-in rows as stored, languages included, in the order of load_corpus."""
    for file in sorted(BUILTIN.glob("*.jsonl")):
        yield from (json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line)


def text_of(row: Mapping[str, Any]) -> str:
    """A stored row's text; of a chat, what is said in it."""
    return str(row["text"]) if "text" in row else "\n".join(turn["content"] for turn in row["messages"])


def count_samples(tokenizer: Any, seed: int = 0) -> list[Counted]:
    """Every sample of the built-in corpus, split as `report --seed SEED` splits it."""
    corpus = load_corpus("builtin")
    samples = tokenize(
        corpus,
        TextReaders(tokenizer=tokenizer),
        vocab_size=len(tokenizer),
        context_length=None,
        max_length=sys.maxsize,
        seed=seed,
    ).samples
    return [
        Counted(
            id=sample.id,
            domain=sample.domain,
            language=row["language"],
            split=sample.split,
            tokens=len(sample.ids),
            text=text_of(row),
        )
        for sample, row in zip(samples, raw_rows(), strict=True)
    ]


def shared_runs(texts: Mapping[str, str], words: int = RUN) -> dict[tuple[str, str], int]:
    """How many different runs of that many words occur in both of two texts, by the pair of their names."""
    holders: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for name, text in texts.items():
        all_words = _WORD.findall(text.casefold())
        for start in range(len(all_words) - words + 1):
            holders[tuple(all_words[start : start + words])].add(name)
    return dict(Counter(pair for names in holders.values() for pair in combinations(sorted(names), 2)))


def markdown(samples: Sequence[Counted]) -> str:
    """The data card's tables: totals, then by domain, by language and by length."""
    return "\n\n".join((_totals(samples), _domains(samples), _languages(samples), _lengths(samples)))


def _totals(samples: Sequence[Counted]) -> str:
    lengths = [sample.tokens for sample in samples]
    near = shared_runs({sample.id: sample.text for sample in samples})
    written = {sample.id for sample in samples if _origin(sample.domain) == "written"}
    rows = {
        "samples": len(samples),
        "domains": len({sample.domain for sample in samples}),
        "natural languages": len({sample.language for sample in samples}),
        "tokens": sum(lengths),
        f"tokens, samples cut at {MAX_LENGTH:,}": sum(min(length, MAX_LENGTH) for length in lengths),
        "tokens of the shortest sample": min(lengths),
        "tokens of the median sample": median_low(lengths),
        "tokens of the longest sample": max(lengths),
        f"pairs of samples that share {RUN} words in a row": len(near),
        "of these, pairs with a written sample": sum(not written.isdisjoint(pair) for pair in near),
    }
    body = [(name, f"{value:,}") for name, value in rows.items()]
    return _table(("Whole corpus", ""), [*body, ("SHA-256", f"`{load_corpus('builtin').sha256}`")])


def _domains(samples: Sequence[Counted]) -> str:
    head = ("Domain", "Origin", "Samples", "Calibration", "Evaluation", "Tokens", "Shortest", "Median", "Longest")
    rows = []
    for domain, members in _grouped(samples, "domain").items():
        lengths = [sample.tokens for sample in members]
        splits = Counter(sample.split for sample in members)
        numbers = (len(members), splits["calibration"], splits["evaluation"], sum(lengths))
        spread = (min(lengths), median_low(lengths), max(lengths))
        spoken = " ".join(sorted({sample.language for sample in members}))
        rows.append((domain, _origin(domain), *(f"{number:,}" for number in numbers + spread), spoken))
    return _table((*head, "Languages"), rows)


def _languages(samples: Sequence[Counted]) -> str:
    groups = _grouped(samples, "language").items()
    rows = ((f"{LANGUAGES[code]} ({code})", f"{len(of):,}", f"{sum(s.tokens for s in of):,}") for code, of in groups)
    return _table(("Language", "Samples", "Tokens"), rows)


def _lengths(samples: Sequence[Counted]) -> str:
    rows = []
    for first, beyond in zip(LENGTHS, (*LENGTHS[1:], sys.maxsize), strict=True):
        members = [sample.tokens for sample in samples if first <= sample.tokens < beyond]
        name = f"{first:,} to {beyond - 1:,}" if beyond < sys.maxsize else f"{first:,} and more"
        rows.append((name, f"{len(members):,}", f"{sum(members):,}"))
    return _table(("Length in tokens", "Samples", "Tokens"), rows)


def _grouped(samples: Iterable[Counted], name: str) -> dict[str, list[Counted]]:
    groups: defaultdict[str, list[Counted]] = defaultdict(list)
    for sample in samples:
        groups[getattr(sample, name)].append(sample)
    return dict(sorted(groups.items()))


def _origin(domain: str) -> str:
    return "program" if domain == OUTPUT.stem else "written"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def demo_tokenizer() -> Any:
    """The demo checkpoint's tokenizer. Raises ModelError, which says how to install it."""
    from transformers import AutoTokenizer

    from quantaudit.model.loading.checkpoint import locate

    demo = locate("demo")
    return AutoTokenizer.from_pretrained(demo.folder, gguf_file=demo.gguf)


def main(
    path: Annotated[Path | None, typer.Argument(help="Page with the marks; standard output without it.")] = None,
) -> None:
    """Write the tables of the built-in corpus between the marks of a page."""
    tables = markdown(count_samples(demo_tokenizer()))
    if path is None:
        typer.echo(tables)
        return
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    write_text(path, f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    typer.run(main)
