"""Recipes for a budget of bits, chosen by prices and by brute force: the KL of both, simulated.

Both choose from one menu, the same formats or no quantization for each fused group. Brute force knows the KL of every
group alone under every format, and takes what saves most bytes a nat first. For `formats.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from brute_force import Case, Scores

from quantaudit.errors import UsageError
from quantaudit.quant.schemes import Scheme
from quantaudit.simulate.allocation.menu import Menu, Unit, menu_of
from quantaudit.simulate.allocation.plain import solve_plainly
from quantaudit.simulate.allocation.solve import Limit, Point, point_of, size_of_bits
from quantaudit.simulate.records import Simulation

BITS = (4.5, 5.0, 6.0, 8.0)
"""Budgets, in bits a quantizable weight."""
WORSE = 1.05
"""How many times the KL of brute force's choice this project's may have."""

Truth = Mapping[str, Scores]
"""KL of every fused group alone, by scheme."""


def by_budget(case: Case, schemes: Sequence[Scheme], simulation: Simulation, truth: Truth) -> list[dict[str, Any]]:
    """For each budget: bits and KL of both choices, and how many groups differ; none where nothing is so small."""
    names = [scheme.name for scheme in schemes]
    menu = menu_of(simulation, case.subject.loaded.info, schemes=names, unquantized=True)
    choices: dict[tuple[float, str], Point] = {}
    for bits in BITS:
        size = size_of_bits(menu, bits)
        try:
            choices[bits, "prices"] = solve_plainly(menu, Limit(max_size=size))[1]
        except UsageError:
            continue
        choices[bits, "brute force"] = point_of(menu, greedy(menu, truth, size - menu.rest))
    named = {scheme.name: scheme for scheme in schemes}
    kls = case.kls(
        [
            case.mixed(
                f"{bits} {side}",
                {group: named[scheme] for group, scheme in point.schemes.items() if scheme is not None},
            )
            for (bits, side), point in choices.items()
        ]
    )
    rows = []
    for bits in dict.fromkeys(bits for bits, _ in choices):
        own, forced = choices[bits, "prices"], choices[bits, "brute force"]
        rows.append(
            {
                "budget": bits,
                "bits": {"prices": own.bits, "brute force": forced.bits},
                "kl": {side: kls.get(f"{bits} {side}", math.nan) for side in ("prices", "brute force")},
                "estimate": own.kl,
                "differ": sum(own.schemes[group] != forced.schemes[group] for group in own.schemes),
            }
        )
    return rows


def greedy(menu: Menu, truth: Truth, size: float) -> list[int]:
    """The option of every unit: from the least KL of each on, the step to fewer bytes that costs least KL a byte, until
    the whole fits.
    """
    kl = [[_alone(unit, option, truth) for option in range(len(unit.schemes))] for unit in menu.units]
    choice = [
        min(range(len(own)), key=lambda o: (own[o], unit.sizes[o])) for own, unit in zip(kl, menu.units, strict=True)
    ]
    while sum(unit.sizes[option] for unit, option in zip(menu.units, choice, strict=True)) > size:
        steps = [
            ((kl[index][other] - kl[index][now]) / (unit.sizes[now] - unit.sizes[other]), index, other)
            for index, (unit, now) in enumerate(zip(menu.units, choice, strict=True))
            for other in range(len(unit.schemes))
            if unit.sizes[other] < unit.sizes[now]
        ]
        _, index, option = min(steps)
        choice[index] = option
    return choice


def _alone(unit: Unit, option: int, truth: Truth) -> float:
    scheme = unit.schemes[option]
    return 0.0 if scheme is None else sum(truth[scheme].get(group, math.inf) for group in unit.groups)
