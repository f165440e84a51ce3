"""Two limits at once: against all choices of small problems, and against exact HiGHS where there are too many."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from quantaudit.simulate.allocation.two_limits import GAP, cheapest_within_both

Rows = list[list[float]]


def total(values: Rows, choice: tuple[int, ...] | list[int]) -> float:
    return sum(row[option] for row, option in zip(values, choice, strict=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, Rows, Rows]:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))

    def rows(values: st.SearchStrategy[float]) -> Rows:
        return [draw(st.lists(values, min_size=size, max_size=size)) for size in sizes]

    whole = st.integers(0, 12).map(float)
    return rows(st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0])), rows(whole), rows(whole)


@given(problems(), st.integers(0, 40), st.integers(0, 40))
def test_no_choice_within_both_limits_is_cheaper_by_more_than_the_gap(
    problem: tuple[Rows, Rows, Rows], limit: int, other: int
) -> None:
    costs, weights, others = problem
    found = cheapest_within_both(costs, weights, limit, others, other)
    fitting = [
        total(costs, choice)
        for choice in product(*(range(len(row)) for row in costs))
        if total(weights, choice) <= limit and total(others, choice) <= other
    ]
    assert (found is None) == (not fitting)
    if found is not None:
        assert total(weights, found) <= limit
        assert total(others, found) <= other
        assert total(costs, found) <= min(fitting) * (1 + GAP) + 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_many_groups_are_solved_to_the_gap(seed: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(seed)
    shapes = rng.choice([64.0, 128.0, 384.0], size=60)
    bits, times = np.array([4.25, 4.5, 8.0, 8.1, 16.0]), np.array([1.0, 0.25, 0.5, 0.5, 1.0])
    weights = [list(np.round(1000 * shape * bits)) for shape in shapes]
    others = [list(np.round(1000 * shape * times)) for shape in shapes]
    usual = np.array([1.0, 0.8, 0.05, 0.03, 0.0])
    costs = [list(rng.lognormal(0, 1) * usual * rng.lognormal(0, 0.3, 5)) for _ in shapes]
    limit, other = 6.5e3 * shapes.sum(), 0.5e3 * shapes.sum()
    found = cheapest_within_both(costs, weights, limit, others, other)
    assert found is not None
    assert total(weights, found) <= limit
    assert total(others, found) <= other
    assert total(costs, found) <= exact(costs, weights, limit, others, other) * (1 + GAP)
    assert capfd.readouterr() == ("", "")


def exact(costs: Rows, weights: Rows, limit: float, others: Rows, other: float) -> float:
    """The least Σ costs, of the mixed-integer program without a gap."""
    counts = [len(row) for row in costs]
    one_each = np.repeat(np.eye(len(counts)), counts, axis=1)
    rows = np.stack([np.concatenate(weights) / limit, np.concatenate(others) / other])
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(rows, ub=1)]
    flat = np.concatenate(costs)
    options = {"mip_rel_gap": 0}
    found = milp(flat, integrality=np.ones_like(flat), bounds=Bounds(0, 1), constraints=constraints, options=options)
    return float(found.fun)
