"""The KL of a recipe as its groups' prices tell it, beside what was simulated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.effects import GroupEffect
from quantaudit.simulate.experiment import Experiment
from quantaudit.simulate.logits.rounding_floor import RoundingFloor, fit_curve
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.records import RecipeRow


def with_estimates(
    recipes: Sequence[RecipeRow],
    plans: Sequence[Plan],
    experiment: Experiment,
    effects: Sequence[GroupEffect],
    floor: RoundingFloor,
) -> list[RecipeRow]:
    """The recipes with the KL that their groups' prices tell; how sums bend is taken from the other recipes alone."""
    prices = {effect.key: effect.price for effect in effects}
    totals = [_sum_of_prices(plan, experiment, prices) for plan in plans]
    estimated = []
    for i, (recipe, total) in enumerate(zip(recipes, totals, strict=True)):
        others = [
            (other, row.kl)
            for j, (row, other) in enumerate(zip(recipes, totals, strict=True))
            if j != i and other is not None
        ]
        estimate = None if total is None else fit_curve(others, floor.at(0)).kl(total)
        estimated.append(recipe.model_copy(update={"kl_estimate": estimate}))
    return estimated


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
