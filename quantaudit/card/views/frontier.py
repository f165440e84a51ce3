"""What a mixture of schemes can reach: estimated KL against size, and the smallest recipe within the policy's limit."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from quantaudit.card.schema import Card
from quantaudit.card.text import USUAL_LEVEL, counted, number, visible
from quantaudit.card.views.schemes import titles
from quantaudit.errors import QuantauditError
from quantaudit.model.blockwise.memory import size_text
from quantaudit.simulate.allocation import UNQUANTIZED, Limit, Menu, Point, frontier, menu_of, size_of_bits, uniform
from quantaudit.simulate.allocation.plain import solve_plainly

MOST_POINTS = 80
"""Of the line: a model of many layers has thousands, which no eye tells apart."""
STATUSES = ("READY", "READY WITH CARE")
"""What the policy's limits of KL stand for, in their order."""
Limits: TypeAlias = tuple[tuple[str, float], ...]
"""(status, the KL up to which it is given), of those that there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised:
    """The smallest recipe whose KL lies within a limit with its whole interval, and how it is written.

    status: what the limit is for. command: writes the recipe.
    """

    point: Point
    status: str
    limit: float
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """line: the best mixtures, smallest first. uniform: title and point of each scheme alone. limits: (status, KL)."""

    line: tuple[Point, ...]
    uniform: tuple[tuple[str, Point], ...]
    limits: Limits
    advised: Advised | None
    reading: str


def frontier_of(card: Card) -> Frontier | None:
    """From the card alone; None where groups have no prices, or the shapes of their weights are not known."""
    if card.simulation is None:
        return None
    level = card.verdict.limits.level or USUAL_LEVEL
    try:
        menus = {u: menu_of(card.simulation, card.model, level=level, unquantized=u) for u in (False, True)}
    except QuantauditError:
        return None
    names = titles(card)
    alone = ((visible(names[scheme], limit=60), uniform(menus[False], scheme)) for scheme in menus[False].schemes)
    limits = tuple((s, kl) for s, kl in zip(STATUSES, card.verdict.limits.kl, strict=False) if 0 < kl < math.inf)
    # Groups that stay unquantized are for limits that no schemes alone reach.
    found = ((islands, _advised(menus[islands], status, kl, islands)) for status, kl in limits for islands in menus)
    islands, advised = next(((islands, one) for islands, one in found if one is not None), (False, None))
    return Frontier(
        line=_thinned(frontier(menus[islands])),
        uniform=tuple((title, point) for title, point in alone if point is not None),
        limits=limits,
        advised=advised,
        reading=_reading(advised, limits, names),
    )


def _advised(menu: Menu, status: str, limit: float, islands: bool) -> Advised | None:
    """What `advise --max-bits` gives for bits rounded up to hundredths; None where nothing is known to be within the
    limit, or nothing that is quantized. islands: whether the menu offers to leave groups unquantized.
    """
    certain = menu.factor is not None

    def beyond(point: Point) -> bool:
        kl = point.kl_high if certain else point.kl
        return kl is None or kl > limit

    try:
        _, point = solve_plainly(menu, Limit(max_kl_high=limit) if certain else Limit(max_kl=limit))
        bits = math.ceil(point.bits * 100 - 1e-9) / 100
        _, point = solve_plainly(menu, Limit(max_size=size_of_bits(menu, bits)))
        # Few schemes at a size may cost a little more than few at a KL.
        while beyond(point):
            if bits > 8 * sum(max(unit.sizes) for unit in menu.units) / menu.weights:
                return None
            bits = round(bits + 0.01, 2)
            _, point = solve_plainly(menu, Limit(max_size=size_of_bits(menu, bits)))
    except QuantauditError:
        return None
    if set(point.schemes.values()) == {UNQUANTIZED}:
        return None
    command = f"quantaudit advise --card card.json --max-bits {bits:g}{' --unquantized' * islands} --out recipe.yaml"
    return Advised(point=point, status=status, limit=limit, command=command)


def _reading(advised: Advised | None, limits: Limits, names: dict[str, str]) -> str:
    """The advised recipe in words, or that there is none."""
    if advised is None:
        return (
            "No mixture is within the policy’s limits of KL by estimate."
            if limits
            else "The policy has no limit of KL."
        )
    point = advised.point
    counts = Counter(point.schemes.values())
    (most, first), *others = counts.most_common()
    groups = (
        f"{first:,} of its {counted(counts.total(), 'group')} {'is' if first == 1 else 'are'} {_named(most, names)}"
    )
    return (
        f"The smallest mixture whose estimated KL is {advised.status} takes {point.bits:.3g} bits for each quantizable "
        f"weight, {size_text(point.size)} in all: KL {kl_text(point, limits)}. "
        f"{'; '.join([groups, *(f'{count:,} {_named(scheme, names)}' for scheme, count in others)])}."
    )


def kl_text(point: Point, limits: Limits) -> str:
    """KL with its interval, each on its own side of every limit."""
    values = [kl for _, kl in limits]
    interval = "" if point.kl_low is None else f" ({number(point.kl_low, values)} to {number(point.kl_high, values)})"
    return f"{number(point.kl, values)}{interval}"


def _named(scheme: str | None, names: dict[str, str]) -> str:
    return "unquantized" if scheme is UNQUANTIZED else f"in {visible(names[scheme], limit=60)}"


def _thinned(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """Evenly chosen, with both ends."""
    if len(points) <= MOST_POINTS:
        return points
    step = (len(points) - 1) / (MOST_POINTS - 1)
    return tuple(points[round(index * step)] for index in range(MOST_POINTS))
