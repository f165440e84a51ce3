"""The exact choice against brute force over all choices, and against HiGHS where these are too many."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from quantaudit.simulate.allocation import knapsack
from quantaudit.simulate.allocation.knapsack import cheapest_choice, supported_choices

Rows = list[list[float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Rows, Rows]:
    """Costs and weights of up to five items with up to four options; few values, so that many choices tie."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    costs = st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0]) if draw(st.booleans()) else st.floats(0, 1e3)
    return (
        [draw(st.lists(costs, min_size=size, max_size=size)) for size in sizes],
        [draw(st.lists(st.integers(0, 12).map(float), min_size=size, max_size=size)) for size in sizes],
    )


def total(values: Rows, choice: tuple[int, ...] | list[int]) -> float:
    return sum(row[option] for row, option in zip(values, choice, strict=True))


def every(costs: Rows, weights: Rows) -> list[tuple[float, float]]:
    """(weight, cost) of all choices."""
    choices = product(*(range(len(row)) for row in costs))
    return [(total(weights, choice), total(costs, choice)) for choice in choices]


@given(problems(), st.integers(0, 60))
def test_it_is_the_choice_of_brute_force_at_every_limit(problem: tuple[Rows, Rows], limit: int) -> None:
    costs, weights = problem
    within = [(cost, weight) for weight, cost in every(costs, weights) if weight <= limit]
    choice = cheapest_choice(costs, weights, limit)
    if not within:
        assert choice is None
        return
    assert choice is not None
    assert total(weights, choice) <= limit
    assert total(costs, choice) == pytest.approx(min(within)[0], rel=1e-9, abs=1e-12)


@given(problems())
def test_the_hull_is_that_of_all_choices(problem: tuple[Rows, Rows]) -> None:
    costs, weights = problem
    points = [(total(weights, choice), total(costs, choice)) for choice in supported_choices(costs, weights)]
    for (weight, cost), (heavier, cheaper) in pairwise(points):
        assert heavier > weight
        assert cheaper <= cost
    for weight, cost in points:
        best = min(other for light, other in every(costs, weights) if light <= weight)
        assert cost == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("whole", [True, False])
def test_of_many_items_none_that_a_general_solver_finds_is_better(seed: int, whole: bool) -> None:
    """150 items of 8 options, costs that fall with weight as those of bit widths do; HiGHS to its own tolerance."""
    rng = np.random.default_rng(seed)
    bits = np.array([4.25, 4.5, 5, 6, 8, 8.02, 8.5, 16])
    size = rng.choice([1, 2, 7, 11], 150) * 1000 if whole else rng.uniform(1, 11, 150)
    weights = size[:, None] * bits * 8
    costs = size[:, None] * rng.lognormal(0, 2, (150, 1)) * 4.0**-bits * rng.lognormal(0, 0.5, (150, 8))
    limit = float(weights.min(1).sum() * rng.uniform(1.05, 1.8))
    choice = cheapest_choice(costs.tolist(), weights.tolist(), limit)
    assert choice is not None
    rows = np.arange(150)
    assert weights[rows, choice].sum() <= limit * (1 + 1e-12)
    one_each = np.kron(np.eye(150), np.ones(8))
    solution = milp(
        costs.ravel() / costs.max(),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(weights.reshape(1, -1) / limit, -np.inf, 1)],
        integrality=np.ones(costs.size),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-5, "time_limit": 20.0},
    )
    other = solution.x.reshape(150, 8).argmax(1)
    assert costs[rows, choice].sum() <= costs[rows, other].sum() * (1 + 1e-9)
    assert costs[rows, choice].sum() >= solution.mip_dual_bound * costs.max() * (1 - 1e-4)


def test_of_equal_costs_the_lighter_then_the_first_is_taken() -> None:
    assert cheapest_choice([[1.0, 1.0, 2.0], [0.5, 0.5]], [[3, 2, 1], [4, 4]], 100) == [1, 0]


def test_where_cost_is_a_multiple_of_weight_a_good_choice_is_found_in_bounded_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All choices are equally good for their weight, so that nothing is ruled out: the hardest knapsacks."""
    monkeypatch.setattr(knapsack, "MOST_SUMS", 5000)
    sizes = np.random.default_rng(0).integers(10**5, 10**6, 60).tolist()
    costs, weights = [[float(size), 0.0] for size in sizes], [[0, size] for size in sizes]
    limit = sum(sizes) // 2
    choice = cheapest_choice(costs, weights, limit)
    assert choice is not None
    assert limit - 3000 <= total(weights, choice) <= limit
