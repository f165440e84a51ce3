"""Samples that are no evidence of their own: by a comparison of all pairs, and for every way of writing a space."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.corpus.load import Corpus, load_corpus
from quantaudit.corpus.repeats.equal import find_repeats
from quantaudit.corpus.repeats.spelling import Spelling
from quantaudit.corpus.rows import CorpusRow
from quantaudit.corpus.tokens import TextReaders, tokenize
from quantaudit.provenance import Split
from tests.builders import sample, tiny_tokenizer

TEXTS = st.lists(st.tuples(st.text("ab", max_size=6), st.sampled_from(["calibration", "evaluation"])), max_size=14)


def one_text(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    return a == b or (long.startswith(short) and 2 * len(short) >= len(long))


@given(TEXTS)
def test_they_are_those_that_a_comparison_of_all_pairs_finds(drawn: list[tuple[str, Split]]) -> None:
    texts, splits = [text for text, _ in drawn], [split for _, split in drawn]
    calibrating = [text for text, split in drawn if split == "calibration"]
    overlapping = {
        i
        for i, (text, split) in enumerate(drawn)
        if split == "evaluation" and any(one_text(text, other) for other in calibrating)
    }
    kept: list[int] = []
    for i, (text, split) in enumerate(drawn):
        same = [k for k in kept if splits[k] == split and one_text(texts[k], text)]
        if i not in overlapping and not same:
            kept.append(i)
    found = find_repeats(texts, splits)
    assert found.overlapping == overlapping
    assert found.all == set(range(len(texts))) - set(kept)
    assert not found.overlapping & found.repeated


@pytest.mark.parametrize(
    "other", ["The cat  sat.", " The cat sat.", "The cat\nsat.", "The\tcat sat. ", "Thecat sat.\r\n"]
)
def test_white_space_makes_no_other_text(other: str) -> None:
    tokenizer = tiny_tokenizer()
    samples = [sample(tokenizer(text)["input_ids"]) for text in ("The cat sat.", other, "The cat sits.")]
    first, second, third = Spelling.of(samples, tokenizer).texts(samples)
    assert first == second != third


def test_without_a_tokenizer_token_ids_are_compared() -> None:
    samples = [sample([1, 2]), sample([12])]
    assert Spelling.of(samples, None).texts(samples) == ["1,2,", "12,"]


def info(*rows: dict[str, str]) -> tuple[int | None, int | None]:
    parsed = tuple(CorpusRow.model_validate(row) for row in rows)
    corpus = tokenize(
        Corpus(spec="c", name="c", sha256="", rows=parsed),
        TextReaders(tokenizer=tiny_tokenizer()),
        vocab_size=260,
        context_length=None,
        max_length=64,
    ).info
    return corpus.overlapping, corpus.repeated


def test_a_corpus_says_how_many_of_its_samples_are_none_of_their_own() -> None:
    a, b = {"text": "one text and its words"}, {"text": "another text of other words"}
    calibration, evaluation = {"split": "calibration"}, {"split": "evaluation"}
    assert info({**a, **calibration}, {**b, **evaluation}) == (0, 0)
    assert info({**a, **calibration}, {"text": "one  text and its words", "id": "x", **evaluation}) == (1, 0)
    assert info({**a, **calibration}, {**a, **calibration}, {**b, **evaluation}, {**b, **evaluation}) == (0, 2)
    assert info({**a, **calibration}, {"text": a["text"] + " and more", **evaluation}) == (1, 0)
    assert info({**a, **calibration}, {"text": a["text"] + " and" + " much more" * 9, **evaluation}) == (0, 0)


def test_the_built_in_corpus_has_none() -> None:
    corpus = load_corpus("builtin")
    texts = ["".join((row.text or str(row.messages)).split()) for row in corpus.rows]
    found = find_repeats(texts, ["calibration"] * len(texts))
    assert found.repeated == set()
