"""What sums of prices amount to: the estimate meets simulated recipes, never falls, and has an exact inverse."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.simulate.records import RecipeRow
from quantaudit.simulate.sensitivity.recipe_estimate import (
    LEAST_FACTOR,
    AdditivityCurve,
    RecipeEstimate,
    error_factor,
    estimate_of,
    fit_estimate,
)
from tests.card_factory import make_card

STORED = Path(__file__).parents[4] / "benchmarks/results/smollm2-135m-4096-tokens.json"

positive = st.floats(1e-4, 20)
pairs = st.lists(st.tuples(positive, positive), min_size=1, max_size=6)


@given(positive, positive, st.floats(0, 0.01))
def test_the_curve_meets_what_was_simulated_and_never_falls(total: float, kl: float, floor: float) -> None:
    curve = fit_estimate([(total, kl + floor), (0.0, 5.0)], floor)
    assert curve.kl(total) == pytest.approx(kl + floor, rel=1e-9)
    values = [curve.kl(total * i / 20) for i in range(1, 41)]
    assert values == sorted(values)
    assert curve.kl(0) == 0
    # What lies beyond was not simulated: it grows in proportion.
    assert curve.kl(10 * total) - floor == pytest.approx(10 * kl)
    # A small recipe keeps its sum.
    assert curve.kl(total * 1e-9) - floor == pytest.approx(total * 1e-9, rel=1e-3, abs=1e-12)


def test_without_a_usable_simulation_the_curve_is_straight() -> None:
    for simulated in ([], [(1.0, None)], [(1.0, float("inf"))], [(0.0, 3.0)], [(1.0, 0.001)]):
        assert fit_estimate(simulated, 0.002) == RecipeEstimate(curves=(AdditivityCurve(floor=0.002),))


def by_hand(simulated: list[tuple[float, float]], total: float, floor: float) -> float:
    """The definition in NumPy: the upper median of what the bends of recipes of a quarter of the sum or more say."""
    s, kl = np.array(simulated, np.float64).T
    ratio = (kl - floor) / s
    rising = 1 + (ratio - 1) * np.minimum(total / s, 1)
    falling = 1 / (1 + (1 / ratio - 1) * np.minimum(total / s, 1))
    said = floor + total * np.where(ratio >= 1, rising, falling)
    near = 4 * s >= total
    return float(np.quantile(said[near], 0.5, method="higher")) if near.any() else float(said[s.argmax()])


@given(pairs, positive, st.floats(0, 5e-5))
def test_the_estimate_is_the_median_of_what_simulated_recipes_say(
    simulated: list[tuple[float, float]], total: float, floor: float
) -> None:
    sums = dict(simulated)
    simulated = list(sums.items())
    ends = [4 * s for s in sums if 4 * s < total]
    expected = max(by_hand(simulated, at, floor) for at in (total, *ends))
    assert fit_estimate(simulated, floor).kl(total) == pytest.approx(expected, rel=1e-9)


@given(pairs, st.floats(0, 5e-5))
def test_the_estimate_never_falls(simulated: list[tuple[float, float]], floor: float) -> None:
    estimate = fit_estimate(simulated, floor)
    values = [estimate.kl(total) for total in np.geomspace(1e-5, 200, 300).tolist()]
    assert all(b >= a * (1 - 1e-12) for a, b in pairwise(values))


@given(pairs, st.floats(1e-3, 50), st.floats(0, 5e-5))
def test_the_largest_sum_within_a_budget_is_on_its_edge(
    simulated: list[tuple[float, float]], budget: float, floor: float
) -> None:
    estimate = fit_estimate(simulated, floor)
    total = estimate.total(budget)
    assert estimate.kl(total) <= budget
    assert estimate.kl(total * (1 + 1e-6)) >= budget * (1 - 1e-9)
    assert estimate.total(floor / 2) == 0


def test_a_small_recipe_says_nothing_of_a_large_one() -> None:
    """Such as one that quantizes weights alone, whose ratio is noise, of one that quantizes everything."""
    weights, dynamic, static = (0.006, 0.02), (0.01, 0.03), (0.4, 0.44)
    assert fit_estimate([weights, dynamic, static], 0.0).kl(0.36) == fit_estimate([static], 0.0).kl(0.36)


def test_one_recipe_far_off_does_not_move_the_estimate() -> None:
    """Such as one whose ranges broke."""
    sound = [(1.0, 1.2), (0.5, 0.58), (0.1, 0.11)]
    assert fit_estimate([*sound, (50.0, 8.0)], 0.0).kl(0.4) == pytest.approx(fit_estimate(sound, 0.0).kl(0.4), rel=0.1)


def test_on_stored_recipes_no_other_estimate_is_closer() -> None:
    """The ten mixed recipes of a brute force run: mean |log ratio| to their simulated KL, each estimated without it.

    Set against it: the plain sum, the bend of the largest simulated recipe alone, the median ratio of mixed recipes.
    """
    stored: dict[str, Any] = json.loads(STORED.read_text(encoding="utf-8"))
    recipes = [(row["sum"], row["kl"]) for row in stored["recipes"]]
    whole = (sum(stored["scores"]["price"].values()), stored["left_alone_kl"]["brute force"]["0"])
    floor = stored["floor"]["0"]
    others = [[*recipes[:i], *recipes[i + 1 :]] for i in range(len(recipes))]

    def error(estimates: list[float]) -> float:
        return float(np.mean([abs(math.log(e / kl)) for e, (_, kl) in zip(estimates, recipes, strict=True)]))

    sums = error([total for total, _ in recipes])
    largest = error([fit_estimate([whole], floor).kl(total) for total, _ in recipes])
    ratios = [sorted(kl / total for total, kl in rest) for rest in others]
    median = error([total * max(1.0, r[len(r) // 2]) for (total, _), r in zip(recipes, ratios, strict=True)])
    shared = error([fit_estimate([whole, *rest], floor).kl(t) for (t, _), rest in zip(recipes, others, strict=True)])
    assert (round(sums, 3), round(largest, 3), round(median, 3)) == (0.125, 0.078, 0.066)
    assert shared <= min(sums, largest, median)


def test_a_card_is_estimated_from_its_recipes_of_one_scheme() -> None:
    simulation = make_card().simulation
    assert simulation is not None
    sums = {
        info.name: sum(
            row.price or 0.0 for row in simulation.groups if row.scheme == info.name and row.layer is not None
        )
        for info in simulation.schemes
    }

    def renamed(recipe: RecipeRow) -> RecipeRow:
        count = sum(row.scheme == recipe.name and row.layer is not None for row in simulation.groups)
        return recipe.model_copy(update={"groups": count, "kl": 0.5, "nonfinite": False})

    whole = simulation.model_copy(update={"recipes": [renamed(row) for row in simulation.recipes]})
    floor = whole.evaluation.rounding_floor or 0.0
    expected = fit_estimate([(sums[row.name], row.kl) for row in whole.recipes if row.name in sums], floor)
    assert estimate_of([whole]) == expected
    assert len(expected.curves) == sum(row.name in sums for row in whole.recipes)
    # A recipe of which some group has no price, or that is not finite, says nothing.
    fewer = [row.model_copy(update={"groups": row.groups + 1}) for row in whole.recipes]
    broken = [row.model_copy(update={"nonfinite": True}) for row in whole.recipes]
    for recipes in (fewer, broken, []):
        straight = estimate_of([whole.model_copy(update={"recipes": recipes})])
        assert straight == RecipeEstimate(curves=(AdditivityCurve(floor=floor),))


def test_how_far_estimates_miss_is_read_from_the_recipes_that_were_simulated() -> None:
    """Against Student's t of five errors alike (2.5706 at 95 %), a least factor, and nothing from three."""

    def factor(errors: list[float]) -> float | None:
        simulation = make_card().simulation
        assert simulation is not None
        some = simulation.recipes[0]
        rows = [
            some.model_copy(update={"name": f"r{i}", "kl": 0.1 * math.exp(error), "kl_estimate": 0.1})
            for i, error in enumerate(errors)
        ]
        return error_factor([simulation.model_copy(update={"recipes": rows})], 0.95)

    assert factor([0.3, -0.3, 0.3, -0.3, 0.3]) == pytest.approx(math.exp(2.5705818 * 0.3))
    assert factor([0.0] * 9) == LEAST_FACTOR
    assert factor([0.3, -0.3, 0.3]) is None
