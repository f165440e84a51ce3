"""Allocations of few schemes: what an engineer reads, serves and keeps, at hardly any cost."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from quantaudit.errors import UsageError
from quantaudit.simulate.allocation.menu import Menu
from quantaudit.simulate.allocation.solve import Limit, Point, solve

WORTH = 0.01
"""Share of the summed prices, or of the bytes, that a scheme has to save to be chosen: estimates are far less exact."""


def solve_plainly(menu: Menu, limit: Limit) -> tuple[Menu, Point]:
    """The best allocation of few schemes, and the menu that it is the best of: that without those that hardly matter.

    Of the schemes that the best of all uses the one whose loss costs least is given up, then others, for as long as the
    sum of prices (under a limit of bytes or of compute), or what is kept low under one of KL, stays within 1 + WORTH of
    the best of all; where that is compute, which many are alike in, the sum of prices does so, too.
    Raises as `solve`.
    """
    point = solve(menu, limit)
    menu = _restricted(menu, set(point.schemes.values()))
    most = [cost * (1 + WORTH) for cost in _costs(limit, menu, point)]
    while fewer := list(_with_one_less(menu, limit)):
        smaller, best = min(fewer, key=lambda pair: (_costs(limit, *pair), pair[1].kl))
        if any(cost > allowed for cost, allowed in zip(_costs(limit, smaller, best), most, strict=True)):
            break
        menu, point = smaller, best
    return menu, point


def _with_one_less(menu: Menu, limit: Limit) -> Iterator[tuple[Menu, Point]]:
    """The menu without each of its schemes, and the best that is left, where anything is."""
    schemes = {scheme for unit in menu.units for scheme in unit.schemes}
    for scheme in sorted(schemes, key=str):
        smaller = _restricted(menu, schemes - {scheme})
        if all(unit.schemes for unit in smaller.units):
            try:
                yield smaller, solve(smaller, limit)
            except UsageError:
                continue


def _restricted(menu: Menu, schemes: Collection[str | None]) -> Menu:
    units = []
    for unit in menu.units:
        kept = [option for option, name in enumerate(unit.schemes) if name in schemes]
        units.append(
            replace(
                unit,
                schemes=tuple(unit.schemes[option] for option in kept),
                sizes=tuple(unit.sizes[option] for option in kept),
                compute=tuple(unit.compute[option] for option in kept),
                prices=tuple(unit.prices[option] for option in kept),
            )
        )
    infos = {name: info for name, info in menu.schemes.items() if name in schemes}
    return replace(menu, units=tuple(units), schemes=infos)


def _costs(limit: Limit, menu: Menu, point: Point) -> tuple[float, ...]:
    if not limit.of_kl:
        return (point.price,)
    return (point.size - menu.rest,) if limit.least == "bytes" else (point.compute or 0.0, point.price)
