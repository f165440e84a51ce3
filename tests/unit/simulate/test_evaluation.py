"""Evaluation tokens come from evaluation samples, fairly over domains, within the budget and the cap."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.simulate.evaluation import SHORTEST, choose, sample_cap, select
from tests.builders import sample
from tests.card_factory import make_card

rows = st.tuples(st.integers(1, 700), st.sampled_from("abc"), st.sampled_from(["evaluation", "calibration"]))


def make(drawn: list[tuple[int, str, str]]) -> list[TokenizedSample]:
    """Samples that have no token in common."""
    return [
        sample(range(1000 * i, 1000 * i + n), index=i, domain=domain, split=split)
        for i, (n, domain, split) in enumerate(drawn)
    ]


@given(st.lists(rows, max_size=25).map(make), st.integers(0, 6000))
def test_the_budget_is_filled_and_never_exceeded(samples: list[TokenizedSample], budget: int) -> None:
    chosen = select(samples, budget)
    taken = sum(len(s.ids) for s in chosen)
    usable = [s for s in samples if s.split == "evaluation" and len(s.ids) >= SHORTEST]
    available = sum(min(len(s.ids), sample_cap(budget)) for s in usable)
    assert taken <= budget
    assert taken >= min(budget, available) - (SHORTEST - 1)


@given(st.lists(rows, max_size=25).map(make), st.integers(0, 6000))
def test_every_chosen_sample_is_the_beginning_of_an_evaluation_sample(
    samples: list[TokenizedSample], budget: int
) -> None:
    chosen = select(samples, budget)
    assert len({s.index for s in chosen}) == len(chosen)
    for s in chosen:
        original = samples[s.index]
        assert original.split == "evaluation"
        assert SHORTEST <= len(s.ids) <= sample_cap(budget)
        assert s.ids.tolist() == original.ids[: len(s.ids)].tolist()
    # Only the last one may be cut below the cap.
    for s in chosen[:-1]:
        assert len(s.ids) == min(len(samples[s.index].ids), sample_cap(budget))


@given(st.lists(rows, max_size=25).map(make), st.integers(0, 6000))
def test_domains_take_turns(samples: list[TokenizedSample], budget: int) -> None:
    usable = Counter(s.domain for s in samples if s.split == "evaluation" and len(s.ids) >= SHORTEST)
    taken: Counter[str] = Counter()
    for s in select(samples, budget):
        taken[s.domain] += 1
        waiting = [domain for domain in usable if taken[domain] < usable[domain]]
        assert all(taken[domain] >= taken[s.domain] - 1 for domain in waiting)


@given(st.lists(rows, min_size=1, max_size=25).map(make), st.integers(SHORTEST, 12_000))
def test_what_a_card_was_simulated_on_is_taken_again(samples: list[TokenizedSample], budget: int) -> None:
    chosen = select(samples, budget)
    taken = sum(len(s.ids) for s in chosen)
    evaluation = make_card().simulation
    assert evaluation is not None
    recorded = evaluation.evaluation.model_copy(update={"tokens": taken, "max_tokens_per_sample": sample_cap(budget)})
    again = select(samples, recorded.budget)
    assert [(s.index, len(s.ids)) for s in again] == [(s.index, len(s.ids)) for s in chosen]


@pytest.mark.parametrize("budget", [0, 1, 100, 4096, 100_000])
def test_the_cap_lets_several_samples_in(budget: int) -> None:
    assert sample_cap(budget) >= 256
    assert sample_cap(budget) <= max(512, budget // 8)


def test_no_evaluation_sample_means_none_is_chosen() -> None:
    assert select([sample([1, 2, 3], split="calibration"), sample([1])], 100) == []


def ids_of(samples: list[TokenizedSample]) -> list[list[int]]:
    return [s.ids.tolist() for s in samples]


def test_a_text_is_evaluated_once_and_never_where_it_calibrates() -> None:
    calibrated, new, other = list(range(20)), list(range(100, 120)), list(range(200, 230))
    samples = [
        sample(calibrated, split="calibration"),
        *(sample(ids, index=i) for i, ids in enumerate((calibrated, new, new, new[:15], other, calibrated[:12]), 1)),
    ]
    selection = choose(samples, 1000, None)
    assert ids_of(selection.samples) == [new, other]
    assert (selection.left_out, selection.overlapping) == (4, 0)


def test_texts_that_are_alike_as_far_as_they_run_are_one() -> None:
    beginning = list(range(300))
    samples = [sample([*beginning, 1000 + i] * 2, index=i) for i in range(3)]
    assert len(choose(samples, 4096, None).samples) == 1
    assert len(choose(samples, 4096 * 4, None).samples) == 3


def test_where_all_calibrates_it_is_evaluated_once_and_said() -> None:
    text = list(range(20))
    samples = [sample(text, split="calibration"), sample(text, index=1), sample(text, index=2)]
    selection = choose(samples, 1000, None)
    assert ids_of(selection.samples) == [text]
    assert (selection.left_out, selection.overlapping) == (1, 1)


def test_what_the_budget_leaves_out_is_no_repeat() -> None:
    samples = [sample(range(100 * i, 100 * i + 50), index=i) for i in range(4)]
    selection = choose(samples, 60, None)
    assert (len(selection.samples), selection.left_out, selection.overlapping) == (2, 0, 0)
