"""The KL that the prices of a recipe's groups sum to, as recipes that were simulated on the same tokens show it.

Prices are second-order and add up. What a sum leaves out is measured on the model itself:

- In 16-bit arithmetic the least change, anywhere, flips roundings in every later layer. What that costs depends on how
  deep it enters and hardly on its size; it comes once for a whole recipe, however many groups are quantized.
- Where prices are large, the next order is no longer small, and prices of the same groups share their errors. A
  simulated recipe shows how far its KL lies above or below its prices' sum; smaller sums bend in proportion.

One function answers for gate, advise, card and benchmark: `fit_estimate`; how far its answers miss, `estimate_factor`.
Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.simulate.records import RecipeRow, Simulation
from quantaudit.stats.interval import mean_interval, student_t

if TYPE_CHECKING:
    from quantaudit.quant.schemes import Scheme
    from quantaudit.simulate.experiment import Experiment
    from quantaudit.simulate.group_effect import GroupEffect
    from quantaudit.simulate.logits.rounding_floor import RoundingFloor
    from quantaudit.simulate.quantized.plan import Plan

FEWEST_ERRORS = 4
"""Recipes without which nothing is known of how far estimates miss."""
LEAST_FACTOR = 1.35
"""Recipes that quantize every group average over the errors of all prices; of mixed recipes of fewer groups, whose
prices average less, 13 of 14 lay within this factor, and the last within 1.41 (docs/prediction.md)."""
REACH = 4.0
"""A simulated recipe shows how the prices of others sum up to so many times its own sum."""
Simulated = tuple[float, float | None]
"""A simulated recipe: the sum of its groups' prices and its KL, nats per token; None where that is not finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdditivityCurve:
    """KL of a recipe, nats per token, from the sum S of its groups' prices: floor + S·(1 + c·S), and for a negative
    curvature c floor + S/(1 − c·S), which never falls. curvature: per nat. fitted_up_to: the sum of the simulated
    recipe; above it the ratio of KL to S stays constant.
    """

    floor: float = 0.0
    curvature: float = 0.0
    fitted_up_to: float = math.inf

    @classmethod
    def through(cls, total: float, kl: float, floor: float) -> AdditivityCurve:
        """The curve through one simulated recipe; total and kl − floor are positive."""
        ratio = (kl - floor) / total
        curvature = (ratio - 1) / total if ratio >= 1 else (1 - 1 / ratio) / total
        return cls(floor=floor, curvature=curvature, fitted_up_to=total)

    def kl(self, total: float) -> float:
        """total: sum of prices, nats per token. 0 for a recipe that costs nothing."""
        if total <= 0:
            return 0.0
        return self.floor + total * self._ratio(min(total, self.fitted_up_to))

    def total(self, kl: float) -> float:
        """The largest sum of prices whose KL is at most `kl`: the inverse."""
        y, c = kl - self.floor, self.curvature
        if y <= 0:
            return 0.0
        if y >= self.fitted_up_to * self._ratio(self.fitted_up_to):
            return y / self._ratio(self.fitted_up_to)
        return 2 * y / (1 + math.sqrt(1 + 4 * c * y)) if c >= 0 else y / (1 + c * y)

    def _ratio(self, total: float) -> float:
        bent = self.curvature * total if self.curvature else 0.0
        return 1 + bent if bent >= 0 else 1 / (1 - bent)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeEstimate:
    """KL of a recipe from the sum of its groups' prices: the median of the curves through the simulated recipes.

    A curve counts for sums up to REACH times its recipe's; above all of these, the one that reaches furthest. Of an
    even number the upper one of the middle two is taken, so that an estimate is rather too high. It never falls.
    """

    curves: tuple[AdditivityCurve, ...]

    def kl(self, total: float) -> float:
        """total: sum of prices, nats per token. 0 for a recipe that costs nothing."""
        # Where a curve ends the median may drop.
        ends = (REACH * curve.fitted_up_to for curve in self.curves)
        return max(map(self._median, [total, *(end for end in ends if end < total)]))

    def total(self, kl: float) -> float:
        """The largest sum of prices that is estimated at `kl` nats per token or less, by bisection."""
        low, high = 0.0, max(curve.total(kl) for curve in self.curves)
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.kl(middle) <= kl else (low, middle)
        return low

    def _median(self, total: float) -> float:
        near = [curve for curve in self.curves if REACH * curve.fitted_up_to >= total]
        near = near or [max(self.curves, key=lambda curve: curve.fitted_up_to)]
        return sorted(curve.kl(total) for curve in near)[len(near) // 2]


def fit_estimate(simulated: Iterable[Simulated], floor: float = 0.0) -> RecipeEstimate:
    """What sums of prices amount to, given recipes that were simulated; without a usable one, the sum and the floor.

    floor: KL of the least change at the first block, nats per token; 0 where it was not measured.
    """
    curves = tuple(
        AdditivityCurve.through(total, kl, floor)
        for total, kl in simulated
        if kl is not None and floor < kl < math.inf and total > 0
    )
    return RecipeEstimate(curves=curves or (AdditivityCurve(floor=floor),))


def estimate_of(simulations: Sequence[Simulation]) -> RecipeEstimate:
    """The estimate that rests on the recipes in a card's or a file's simulations that use one scheme throughout."""
    floors = [s.evaluation.rounding_floor for s in simulations if s.evaluation.rounding_floor is not None]
    uniform = (pair for simulation in simulations for pair in uniform_recipes(simulation))
    pairs = ((total, None if recipe.nonfinite else recipe.kl) for recipe, total in uniform)
    return fit_estimate(pairs, floors[0] if floors else 0.0)


def uniform_recipes(simulation: Simulation) -> Iterator[tuple[RecipeRow, float]]:
    """Recipes that are named as the one scheme that they give all groups in the blocks, and the sum of their prices.

    Those of which some group has no price are left out.
    """
    for recipe in simulation.recipes:
        rows = [row for row in simulation.groups if row.scheme == recipe.name and row.layer is not None]
        prices = [row.price for row in rows if row.price is not None]
        if prices and len(prices) == recipe.groups:
            yield recipe, sum(prices)


def error_factor(simulations: Iterable[Simulation], level: float) -> float | None:
    """By which factor an estimate may miss the KL to either side, at a two-sided level; None where that is not known.

    From what the simulated recipes were missed by, each estimated from the others alone: Student's t of as many degrees
    of freedom times the root mean square of log(KL / estimate), which holds bias and spread.
    """
    errors = [
        math.log(row.kl / row.kl_estimate)
        for simulation in simulations
        for row in simulation.recipes
        if row.kl and row.kl_estimate and not (row.nonfinite or row.unsimulated)
    ]
    if len(errors) < FEWEST_ERRORS:
        return None
    spread = math.sqrt(sum(error**2 for error in errors) / len(errors))
    return max(math.exp(student_t(level, len(errors) + 1) * spread), LEAST_FACTOR)


def estimate_factor(simulations: Sequence[Simulation], level: float, margin: float | None) -> float | None:
    """By which factor the KL of a recipe may lie to either side of its estimate, at a two-sided level.

    How far estimates of the simulated recipes miss, or `margin` where too few were simulated, and the sampling error of
    what the estimate rests on, which is the largest relative one of the recipes that show how prices add up: all were
    taken on the same tokens as the prices. The two are independent, and add as squares of logarithms. None where
    neither errors nor a margin are known.
    """
    errors = error_factor(simulations, level) or margin
    if errors is None:
        return None
    rows = [row for simulation in simulations for row, _ in uniform_recipes(simulation)]
    sampling = [
        mean_interval(row.kl, row.kl_stderr, row.samples, level).high / row.kl - 1
        for row in rows
        if row.kl and row.kl_stderr is not None and row.samples >= 2
    ]
    return math.exp(math.hypot(math.log(errors), math.log1p(max(sampling, default=0.0))))


def with_estimates(
    recipes: Sequence[RecipeRow],
    plans: Sequence[Plan],
    experiment: Experiment,
    effects: Sequence[GroupEffect],
    floor: RoundingFloor,
) -> list[RecipeRow]:
    """The recipes with the KL estimated from prices; each estimate rests on the other recipes alone."""
    prices = {effect.key: effect.price for effect in effects}
    totals = [_sum_of_prices(plan, experiment, prices) for plan in plans]
    pairs = [None if total is None else (total, row.kl) for total, row in zip(totals, recipes, strict=True)]
    rows = []
    for i, (recipe, total) in enumerate(zip(recipes, totals, strict=True)):
        others = [pair for j, pair in enumerate(pairs) if j != i and pair is not None]
        kl = None if total is None else fit_estimate(others, floor.at(0)).kl(total)
        rows.append(recipe.model_copy(update={"kl_estimate": kl}))
    return rows


def _sum_of_prices(plan: Plan, experiment: Experiment, prices: Mapping[tuple[str, str], float | None]) -> float | None:
    """Nats per token; None where the plan does something to a group that has no price, as smoothing is."""
    if plan.smoothed:
        return None
    total = 0.0
    for group in experiment.groups:
        schemes = [plan.schemes.get(member) for member in group.members]
        if not any(schemes):
            continue
        price = next(
            (
                prices.get((group.name, scheme.name))
                for scheme in experiment.schemes
                if all(member is not None and _alike(member, scheme) for member in schemes)
            ),
            None,
        )
        if price is None:
            return None
        total += price
    return total


def _alike(a: Scheme, b: Scheme) -> bool:
    return (a.weights, a.input_activations, a.observer) == (b.weights, b.input_activations, b.observer)
