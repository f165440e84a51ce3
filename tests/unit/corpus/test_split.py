"""The split is two to one, fair to every domain, seeded, and blind to the order of the rows."""

from __future__ import annotations

from collections import Counter
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.corpus.load import CorpusRow
from quantaudit.corpus.split import assign, round_robin, stratified


def make(domains: str, splits: dict[int, Any] | None = None) -> list[CorpusRow]:
    """One row a letter, of that domain, with distinct text."""
    return [CorpusRow(text=f"text {i}", domain=domain, split=(splits or {}).get(i)) for i, domain in enumerate(domains)]


corpora = st.text("abcde", min_size=2, max_size=60).map(make)


@given(corpora, st.integers(0, 5))
def test_a_third_of_all_rows_evaluates(rows: list[CorpusRow], seed: int) -> None:
    splits = Counter(assign(rows, seed))
    assert splits["evaluation"] == max(1, len(rows) // 3)
    assert splits["calibration"] == len(rows) - splits["evaluation"]
    assert splits["calibration"] > 0


@given(corpora, st.integers(0, 5))
def test_every_domain_is_split_two_to_one_within_one_sample(rows: list[CorpusRow], seed: int) -> None:
    assigned = list(zip(rows, assign(rows, seed), strict=True))
    for domain, count in Counter(row.domain for row in rows).items():
        evaluated = sum(split == "evaluation" for row, split in assigned if row.domain == domain)
        assert abs(evaluated - count / 3) < 1 or len(rows) < 3


@given(corpora, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split_of_a_row_does_not_depend_on_the_order(rows: list[CorpusRow], seed: int, random: Any) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    expected = {row.text: split for row, split in zip(rows, assign(rows, seed), strict=True)}
    assert {row.text: split for row, split in zip(shuffled, assign(shuffled, seed), strict=True)} == expected


def test_the_seed_decides() -> None:
    rows = make("a" * 30)
    assert assign(rows, 0) == assign(rows, 0)
    assert len({tuple(assign(rows, seed)) for seed in range(5)}) > 1


def test_the_seed_decides_even_among_rows_that_differ_only_in_kind() -> None:
    rows = [CorpusRow(text="1"), CorpusRow(input_ids=[1]), CorpusRow(messages=[{"role": "user", "content": "1"}])]
    for order in permutations(range(3)):
        splits = assign([rows[i] for i in order], 3)
        assert dict(zip(order, splits, strict=True)) == dict(enumerate(assign(rows, 3)))


@given(
    st.lists(st.sampled_from(["calibration", "evaluation", None]), min_size=2, max_size=30),
    st.integers(0, 3),
)
def test_rows_that_name_their_split_keep_it(named: list[Any], seed: int) -> None:
    rows = make("ab" * 15, dict(enumerate(named)))[: len(named)]
    splits = assign(rows, seed)
    assert [split for row, split in zip(rows, splits, strict=True) if row.split] == [s for s in named if s]
    if None in named:
        assert set(splits) == {"calibration", "evaluation"}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (["calibration", None], ["calibration", "evaluation"]),
        (["evaluation", None], ["evaluation", "calibration"]),
        (["calibration", "evaluation"], ["calibration", "evaluation"]),
    ],
)
def test_the_last_free_row_fills_the_empty_split(named: list[Any], expected: list[str]) -> None:
    assert assign(make("aa", dict(enumerate(named))), 0) == expected


@given(corpora, st.integers(0, 3))
def test_every_prefix_of_the_stratified_order_is_fair_to_domains(rows: list[CorpusRow], seed: int) -> None:
    order = stratified(rows, seed)
    assert sorted(order) == list(range(len(rows)))
    left = Counter(row.domain for row in rows)
    taken: Counter[str] = Counter()
    for i in order:
        taken[rows[i].domain] += 1
        behind = [domain for domain in left if taken[domain] < left[domain]]
        assert all(taken[domain] >= taken[rows[i].domain] - 1 for domain in behind)


@given(corpora, st.integers(0, 3), st.randoms(use_true_random=False), st.integers(1, 20))
def test_a_prefix_holds_the_same_rows_in_whatever_order_they_came(
    rows: list[CorpusRow], seed: int, random: Any, count: int
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    expected = [rows[i].text for i in stratified(rows, seed)[:count]]
    assert [shuffled[i].text for i in stratified(shuffled, seed)[:count]] == expected


def test_round_robin_takes_domains_in_turn() -> None:
    assert round_robin(["b", "a", "b", "b", "a", "c"]) == [1, 0, 5, 4, 2, 3]
    assert round_robin([]) == []
