"""The multiple-choice knapsack with two limits, such as bytes and compute: a mixed-integer program, by HiGHS."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from quantaudit.common.logs import compiled_prints_aside
from quantaudit.simulate.allocation.knapsack import Values, cheapest_choice

GAP = 2e-3
"""Relative: no choice is cheaper by more. Prices are far less exact, and the last thousandth takes most of the time."""
_SLACKS = (0.0, 1e-6, 1e-4)
"""Relative: by so much limits are lowered where HiGHS exceeds one, as it may by a millionth."""
_SCALED = 1e3


def cheapest_within_both(
    costs: Values, weights: Values, limit: float, others: Values, other_limit: float
) -> list[int] | None:
    """A choice with Σ weights ≤ limit and Σ others ≤ other_limit whose Σ costs is within GAP of the least.

    Values are never negative. None where no choice is within both limits.
    """
    free = cheapest_choice(costs, weights, limit)
    if free is None or _total(others, free) <= other_limit:
        return free
    least = cheapest_choice(others, weights, limit)
    if least is None or _total(others, least) > other_limit:
        return None
    for slack in _SLACKS:
        limits = [(weights, limit * (1 - slack)), (others, other_limit * (1 - slack))]
        choice = _by_highs(costs, limits, scale=_total(costs, free) or _total(costs, least))
        if choice is not None and _total(weights, choice) <= limit and _total(others, choice) <= other_limit:
            return min(choice, least, key=lambda found: _total(costs, found))
    return least


def _by_highs(costs: Values, limits: Sequence[tuple[Values, float]], scale: float) -> list[int] | None:
    """The cheapest choice to within GAP, and within limits as far as HiGHS keeps them; None where it finds none.

    scale: about what it costs, above its tolerances of which the costs have to lie.
    """
    options = [len(row) for row in costs]
    one_each = csr_array((np.ones(sum(options)), (np.repeat(np.arange(len(options)), options), range(sum(options)))))
    flat = np.concatenate(costs)
    with compiled_prints_aside(shown=False):
        found = milp(
            flat * (_SCALED / max(scale, np.finfo(float).tiny)),
            integrality=np.ones_like(flat),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                *(
                    LinearConstraint(np.concatenate(values)[None] / (most or 1), ub=bool(most))
                    for values, most in limits
                ),
            ],
            options={"mip_rel_gap": GAP},
        )
    if found.x is None:
        return None
    return [int(np.argmax(found.x[a:b])) for a, b in pairwise(np.cumsum([0, *options]))]


def _total(values: Values, choice: Sequence[int]) -> float:
    return sum(row[option] for row, option in zip(values, choice, strict=True))
