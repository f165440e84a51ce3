"""Which option for which group: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.errors import RecipeError
from quantaudit.simulate.allocation.knapsack import cheapest_choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One group to choose an option for. costs: by option, nats; lost_macs: by option, share of the MACs."""

    costs: tuple[float, ...]
    lost_macs: tuple[float, ...]


def cheapest(items: Sequence[Item], most_lost: float) -> list[int]:
    """The option of each item with the least Σ costs among choices with Σ lost_macs ≤ most_lost.

    Raises RecipeError where there is none.
    """
    return _solve([item.costs for item in items], [item.lost_macs for item in items], most_lost)


def least_lost(items: Sequence[Item], budget: float) -> list[int]:
    """The option of each item with the least Σ lost_macs among choices with Σ costs ≤ budget.

    Raises RecipeError where there is none.
    """
    return _solve([item.lost_macs for item in items], [item.costs for item in items], budget)


def _solve(minimised: Sequence[Sequence[float]], limited: Sequence[Sequence[float]], limit: float) -> list[int]:
    choice = cheapest_choice(minimised, limited, limit)
    if choice is None:
        raise RecipeError("no choice within the limit", hint="widen the goal")
    return choice
