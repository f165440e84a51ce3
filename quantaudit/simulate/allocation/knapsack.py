"""The multiple-choice knapsack, solved exactly: one option of every item, the least cost within a limit of weight.

Relaxed to fractions of options it is solved by sorting (Sinha and Zoltners 1979, Operations Research 27:503). Its
multiplier prices weight; an option whose cost at that price exceeds its item's least by more than what the relaxed and
the greedy choice differ is in no better choice, and few are left. The rest is dynamic programming over sums (weight,
cost) that no other beats. Weights that are whole numbers are added as such, so that no tolerance of a general solver
decides what fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Values = Sequence[Sequence[float]]
"""By item and option; never negative, and finite."""
_ROUNDING = 1e-9
"""Relative error that sums of costs in different orders may have; what is nearer than it counts as equal."""

MOST_SUMS = 1 << 16
"""Sums that are kept at a time. Prices of a model leave some thousands; only where cost is a fixed multiple of weight
in all items are there more, of choices that are nearly alike, and then not every one is looked at."""


@dataclass(frozen=True, slots=True)
class _Step:
    """From one option of an item's convex hull to the next heavier one. saved: cost for each unit of weight."""

    saved: float
    item: int
    heavier: int


def cheapest_choice(costs: Values, weights: Values, limit: float) -> list[int] | None:
    """The option of each item with the least Σ costs among choices with Σ weights ≤ limit; None where there is none.

    Of options that cost the same the lighter one is taken, then the first.
    """
    kept = [_efficient(c, w) for c, w in zip(costs, weights, strict=True)]
    if sum(weights[item][options[0]] for item, options in enumerate(kept)) > limit:
        return None
    steps = _steps(costs, weights, kept)
    choice = [options[0] for options in kept]
    room, price = limit - _total(weights, choice), 0.0
    for step in steps:
        more = weights[step.item][step.heavier] - weights[step.item][choice[step.item]]
        if more <= room and costs[step.item][step.heavier] < costs[step.item][choice[step.item]]:
            choice[step.item], room = step.heavier, room - more
        elif not price:
            price = step.saved  # the first that does not fit is the fractional one
    return choice if not price else _improved(costs, weights, kept, limit, price, choice)


def supported_choices(costs: Values, weights: Values) -> Iterator[list[int]]:
    """Choices on the lower convex hull of all (Σ weights, Σ costs), from the lightest to the cheapest.

    Each is the cheapest of all choices of its weight or less.
    """
    kept = [_efficient(c, w) for c, w in zip(costs, weights, strict=True)]
    choice = [options[0] for options in kept]
    yield list(choice)
    for step in _steps(costs, weights, kept):
        choice[step.item] = step.heavier
        yield list(choice)


def _improved(
    costs: Values, weights: Values, kept: Sequence[Sequence[int]], limit: float, price: float, greedy: Sequence[int]
) -> list[int]:
    """The cheapest choice, given a good one and the relaxed solution's price of weight."""
    penalized = [[costs[i][o] + price * weights[i][o] for o in options] for i, options in enumerate(kept)]
    least = [min(values) for values in penalized]
    most = (_total(costs, greedy) + price * limit) * (1 + _ROUNDING)
    gap = most - sum(least)
    core = [
        [o for o, value in zip(options, values, strict=True) if value - low <= gap]
        for options, values, low in zip(kept, penalized, least, strict=True)
    ]
    order = sorted(range(len(core)), key=lambda item: -len(core[item]))
    lightest = [min(weights[item][o] for o in core[item]) for item in order]
    weight, cost = np.zeros(1), np.zeros(1)
    chosen: list[tuple[NDArray[np.int64], int]] = []
    for place, item in enumerate(order):
        count = len(weight)
        weight = _sums(weight, [weights[item][o] for o in core[item]])
        cost = _sums(cost, [costs[item][o] for o in core[item]])
        rest = sum(least[other] for other in order[place + 1 :])
        fits = weight + sum(lightest[place + 1 :]) <= limit
        alive = np.flatnonzero(fits & (cost + price * weight + rest <= most))
        alive = alive[_undominated(weight[alive], cost[alive])]
        if len(alive) > MOST_SUMS:
            alive = alive[_thinned(weight[alive], cost[alive] + price * weight[alive])]
        chosen.append((alive, count))
        weight, cost = weight[alive], cost[alive]
    if not len(cost):  # weights that are no whole numbers, and fill the limit to the last bit in another order
        return list(greedy)
    best = _traced(order, core, chosen, len(cost) - 1)  # the heaviest is the cheapest
    return best if _total(costs, best) < _total(costs, greedy) else list(greedy)


def _sums(states: NDArray[np.float64], options: Sequence[float]) -> NDArray[np.float64]:
    """Of every option with every state, options slowest; float64 holds whole numbers up to 2⁵³ exactly."""
    return (np.asarray(options, np.float64)[:, None] + states[None]).ravel()


def _undominated(weight: NDArray[np.float64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of sums that no other one beats, the lightest first."""
    order = np.lexsort((cost, weight))
    least = np.minimum.accumulate(cost[order])
    return order[np.diff(least, prepend=np.inf) < 0]


def _thinned(weight: NDArray[np.float64], penalized: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of the sums that are best at the price of weight, one for each of MOST_SUMS stretches of weight."""
    stretch = ((weight - weight[0]) * (MOST_SUMS / (weight[-1] - weight[0] + 1))).astype(np.int64)
    order = np.lexsort((penalized, stretch))
    _, first = np.unique(stretch[order], return_index=True)
    return order[first]


def _traced(
    order: Sequence[int], core: Sequence[Sequence[int]], chosen: Sequence[tuple[NDArray[np.int64], int]], state: int
) -> list[int]:
    choice = [0] * len(order)
    for item, (alive, count) in zip(reversed(order), reversed(chosen), strict=True):
        option, state = divmod(int(alive[state]), count)
        choice[item] = core[item][option]
    return choice


def _efficient(costs: Sequence[float], weights: Sequence[float]) -> list[int]:
    """Options that no other beats, the lightest first."""
    kept: list[int] = []
    for option in sorted(range(len(costs)), key=lambda o: (weights[o], costs[o], o)):
        if not kept or costs[option] < costs[kept[-1]]:
            kept.append(option)
    return kept


def _steps(costs: Values, weights: Values, kept: Sequence[Sequence[int]]) -> list[_Step]:
    """Along the convex hull of every item, those that save most for their weight first."""
    steps = []
    for item, options in enumerate(kept):
        hull: list[int] = []

        def saved(a: int, b: int, item: int = item) -> float:
            return (costs[item][a] - costs[item][b]) / (weights[item][b] - weights[item][a])

        for option in options:
            while len(hull) > 1 and saved(hull[-1], option) >= saved(hull[-2], hull[-1]):
                hull.pop()
            hull.append(option)
        steps += [_Step(saved(a, b), item, b) for a, b in pairwise(hull)]
    return sorted(steps, key=lambda step: -step.saved)


def _total(values: Values, choice: Sequence[int]) -> float:
    return sum(row[option] for row, option in zip(values, choice, strict=True))
