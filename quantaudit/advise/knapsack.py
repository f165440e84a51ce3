"""Which option for which group: a multiple-choice knapsack, solved exactly (HiGHS, through scipy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from quantaudit.errors import RecipeError


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
    kept = [_efficient(values, weights) for values, weights in zip(minimised, limited, strict=True)]
    sizes = [len(options) for options in kept]
    objective, weights = _flat(minimised, kept), _flat(limited, kept)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    one_each = (owner[None] == np.arange(len(sizes))[:, None]).astype(np.float64)
    # Scaled to 1: the solver's tolerances are absolute, and KLs may be small.
    top = float(objective.max(initial=0.0)) or 1.0
    unit = limit if limit > 0 else float(weights.max(initial=0.0)) or 1.0
    solution = milp(
        objective / top,
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint((weights / unit)[None], -np.inf, limit / unit)],
        integrality=np.ones(len(objective), np.int64),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4, "time_limit": 30.0},
    )
    if solution.x is None:
        raise RecipeError(f"no choice within the limit: {solution.message}", hint="widen the goal")
    ends = np.cumsum(sizes)
    chosen = [int(solution.x[end - size : end].argmax()) for size, end in zip(sizes, ends, strict=True)]
    return [options[index] for options, index in zip(kept, chosen, strict=True)]


def _efficient(minimised: Sequence[float], limited: Sequence[float]) -> list[int]:
    """Options of one item that no other beats: of equals the one that uses less of the limit, then the first."""
    kept: list[int] = []
    for index in sorted(range(len(minimised)), key=lambda index: (minimised[index], limited[index], index)):
        if not kept or limited[index] < limited[kept[-1]]:
            kept.append(index)
    return sorted(kept)


def _flat(rows: Sequence[Sequence[float]], kept: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    return np.array(
        [values[index] for values, options in zip(rows, kept, strict=True) for index in options], np.float64
    )
