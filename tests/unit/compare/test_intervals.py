"""How sure a change is: against SciPy, against a second formula, and by how often the interval covers the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantaudit.compare.intervals import LEAST_DOMAINS, LEVEL, Mean, value_change
from tests.unit.compare.subjects import STATIC, a_card, comparison, with_conditions, with_score


def mean(value: float | None, stderr: float | None = None, samples: int = 0) -> Mean:
    return Mean(value=value, stderr=stderr, samples=samples, parts={})


def over(tokens: np.ndarray, values: np.ndarray) -> Mean:
    parts = {f"d{i}": (int(count), float(value)) for i, (count, value) in enumerate(zip(tokens, values, strict=True))}
    return Mean(value=float(values @ tokens / tokens.sum()), stderr=None, samples=99, parts=parts)


@pytest.mark.parametrize(("first", "second", "spread"), [(12, 12, 1.0), (5, 40, 3.0), (200, 150, 0.2), (2, 2, 1.0)])
def test_of_independent_samples_it_is_welchs(first: int, second: int, spread: float) -> None:
    """The degrees of freedom are rounded down, which widens it by little."""
    random = np.random.default_rng(first)
    one, other = random.normal(1.0, 1.0, first), random.normal(1.5, spread, second)
    interval = stats.ttest_ind(other, one, equal_var=False).confidence_interval(LEVEL)
    sides = [mean(float(row.mean()), float(row.std(ddof=1) / np.sqrt(len(row))), len(row)) for row in (one, other)]
    row = value_change(*sides, same_samples=False)
    assert row.change == pytest.approx(other.mean() - one.mean())
    assert row.low is not None
    assert row.high is not None
    wider = (row.high - row.low) / (interval.high - interval.low)
    assert 1 - 1e-9 <= wider < (1.1 if first > 4 else 3)
    assert row.low + row.high == pytest.approx(2 * row.change)
    assert not row.paired


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(mean(1.0, None, 9), mean(2.0, 0.1, 9)), (mean(1.0, 0.1, 9), mean(2.0, 0.1, 1)), (mean(1.0, 0.1, 9), mean(2.0))],
)
def test_it_may_not_be_known(ours: Mean, theirs: Mean) -> None:
    row = value_change(ours, theirs, same_samples=True)
    assert (row.change, row.low, row.high) == (1.0, None, None)
    assert value_change(mean(None), theirs, same_samples=False).change is None
    assert value_change(mean(1.0, 0.0, 9), mean(2.0, 0.0, 9), same_samples=False).low == 1.0


def test_of_domains_as_large_as_each_other_it_is_the_paired_t_interval() -> None:
    random = np.random.default_rng(1)
    one, noise = random.normal(1.0, 5.0, 18), random.normal(0.1, 0.2, 18)
    tokens = np.full(18, 200)
    row = value_change(over(tokens, one), over(tokens, one + noise), same_samples=True)
    expected = stats.ttest_rel(one + noise, one).confidence_interval(LEVEL)
    assert row.paired
    assert (row.low, row.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_over_domains_it_covers_the_truth_as_often_as_it_says() -> None:
    """Domains of other sizes and other difficulty, whose changes vary around 0.1."""
    random = np.random.default_rng(2)
    covered = []
    for _ in range(1000):
        tokens, hard = random.integers(100, 400, 18), random.lognormal(0, 1, 18)
        row = value_change(over(tokens, hard), over(tokens, hard + random.normal(0.1, 0.05, 18)), same_samples=True)
        assert row.low is not None
        assert row.high is not None
        covered.append(row.low <= 0.1 <= row.high)
    assert 0.92 < np.mean(covered) < 0.98


def test_domains_count_only_where_both_sides_have_the_same_tokens_of_them() -> None:
    tokens, values = np.full(18, 200), np.linspace(0, 1, 18)
    same = over(tokens, values)
    assert value_change(same, same, same_samples=True).paired
    assert not value_change(same, same, same_samples=False).paired
    assert not value_change(same, over(tokens + 1, values), same_samples=True).paired
    few = over(tokens[: LEAST_DOMAINS - 1], values[: LEAST_DOMAINS - 1])
    assert not value_change(few, few, same_samples=True).paired


def test_cards_are_paired_where_they_rest_on_the_same_samples() -> None:
    card = a_card()
    assert card.simulation is not None
    recipe = card.simulation.recipes[0]
    first = next(iter(recipe.domains.values()))
    domains = {f"d{index}": first for index in range(LEAST_DOMAINS)}
    ours = with_score(card, STATIC, domains=domains, kl=first.kl, top1=first.top1)
    assert comparison(ours, ours).changes[0].schemes[0].kl.paired
    assert comparison(ours, ours).changes[0].schemes[0].kl.high == 0
    assert not comparison(ours, with_score(ours, STATIC, kl=9.0)).changes[0].schemes[0].kl.paired  # not all of its text
    assert ours.simulation is not None
    evaluation = ours.simulation.evaluation.model_copy(update={"samples": ["other"]})
    other = with_conditions(ours, "simulation", evaluation=evaluation)
    assert not comparison(ours, other).changes[0].schemes[0].kl.paired


def test_a_score_that_differs_in_no_number_did_not_change() -> None:
    """However few its domains are; not where one number of one domain differs, or the text does."""
    card = a_card()
    assert card.simulation is not None
    score = next(row for row in card.simulation.recipes if row.name == STATIC)
    assert 0 < len(score.domains) < LEAST_DOMAINS
    again = comparison(card, card).changes[0].schemes[0]
    for value in (again.kl, again.top1):
        assert (value.change, value.low, value.high, value.paired) == (0, 0, 0, True)
    name, first = next(iter(score.domains.items()))
    assert first.kl is not None
    moved = score.domains | {name: first.model_copy(update={"kl": first.kl * (1 + 1e-15)})}
    unequal = comparison(card, with_score(card, STATIC, domains=moved)).changes[0].schemes[0]
    assert not unequal.kl.paired
    assert unequal.kl.high is not None
    assert unequal.kl.high > 0
    evaluation = card.simulation.evaluation.model_copy(update={"samples": ["other"]})
    other = with_conditions(card, "simulation", evaluation=evaluation)
    assert not comparison(card, other).changes[0].schemes[0].kl.paired
