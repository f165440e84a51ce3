"""What the built-in corpus promises: many domains, many languages and scripts, nothing twice, and no silent change."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from quantaudit.corpus.load import BUILTIN, load_corpus
from quantaudit.corpus.split import assign, stratified
from tools import generate_corpus

SHA256 = "0a1b072b191ae52aaa0f227b1f4a45c405b8a0cbb8f885945761dd948df1fa33"
"""Whoever changes the corpus changes every card made of it: then change this too, and say so in the changelog."""


def rows() -> list[dict[str, Any]]:
    files = sorted(BUILTIN.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").split("\n") if line]


def text_of(row: dict[str, Any]) -> str:
    return row["text"] if "text" in row else "\n".join(turn["content"] for turn in row["messages"])


def script_of(text: str) -> str:
    """The script of most letters, by the first word of their Unicode names."""
    return Counter(unicodedata.name(c, "?").split()[0] for c in text if c.isalpha()).most_common(1)[0][0]


def test_the_corpus_is_the_one_that_cards_name() -> None:
    assert load_corpus("builtin").sha256 == SHA256


def test_it_has_enough_samples_of_enough_domains() -> None:
    corpus = load_corpus("builtin")
    domains = Counter(row.domain for row in corpus.rows)
    assert len(corpus.rows) >= 240
    assert len(domains) >= 14
    assert min(domains.values()) >= 6  # so that both splits hold some of each, two to one
    assert corpus.name == "quantaudit built-in"


def test_the_part_that_the_demo_takes_has_every_domain_in_both_splits_and_every_kind_of_language() -> None:
    corpus = load_corpus("builtin")
    chosen = [corpus.rows[i] for i in sorted(stratified(corpus.rows, 0)[:72])]
    splits = Counter((row.domain, split) for row, split in zip(chosen, assign(chosen, 0), strict=True))
    domains = {row.domain for row in corpus.rows}
    assert set(splits) == {(domain, split) for domain in domains for split in ("calibration", "evaluation")}
    assert max(Counter(row.domain for row in chosen).values()) <= 4
    languages = {row["id"]: row["language"] for row in rows()}
    actual = {languages[row.id] for row in chosen if row.id}
    assert len(actual) >= 12
    texts = {row["id"]: text_of(row) for row in rows()}
    assert len({script_of(texts[row.id]) for row in chosen if row.id}) >= 5


def test_the_part_does_not_depend_on_the_order_of_the_rows() -> None:
    corpus = load_corpus("builtin")
    backwards = corpus.rows[::-1]
    assert {corpus.rows[i].id for i in stratified(corpus.rows, 0)[:72]} == {
        backwards[i].id for i in stratified(backwards, 0)[:72]
    }


def test_the_demo_takes_that_part() -> None:
    makefile = Path(__file__).parents[3] / "Makefile"
    assert "report demo --samples 72 " in makefile.read_text(encoding="utf-8")


def test_every_domain_has_its_own_file() -> None:
    for file in BUILTIN.glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").split("\n")
        assert {json.loads(line)["domain"] for line in lines if line} == {file.stem}


def test_ids_are_unique_and_tell_the_domain() -> None:
    actual = rows()
    assert len({row["id"] for row in actual}) == len(actual)
    assert all(row["id"].startswith(f"{row['domain']}-") for row in actual)


def test_no_text_occurs_twice() -> None:
    texts = [" ".join(text_of(row).split()).casefold() for row in rows()]
    assert len(set(texts)) == len(texts)


def test_it_speaks_at_least_twelve_languages_in_at_least_five_scripts() -> None:
    actual = rows()
    languages = {row["language"] for row in actual}
    scripts = {script_of(text_of(row)) for row in actual}
    assert len(languages) >= 12, languages
    assert len(scripts) >= 5, scripts
    assert {"LATIN", "CYRILLIC", "ARABIC"} <= scripts


def test_it_holds_chats_and_no_prepared_splits() -> None:
    actual = load_corpus("builtin").rows
    assert any(row.messages for row in actual)
    assert all(row.split is None for row in actual)


@pytest.mark.parametrize("seed", range(5))
def test_every_domain_is_split_two_to_one(seed: int) -> None:
    actual = load_corpus("builtin").rows
    sizes = Counter(row.domain for row in actual)
    held = Counter(row.domain for row, split in zip(actual, assign(actual, seed), strict=True) if split == "evaluation")
    assert all(abs(held[domain] - size / 3) < 1 for domain, size in sizes.items()), held


def test_the_structured_domain_is_what_its_generators_make() -> None:
    stored = (BUILTIN / "structured.jsonl").read_text(encoding="utf-8")
    assert stored == generate_corpus.structured_jsonl()
