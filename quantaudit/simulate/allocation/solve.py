"""The best allocations of schemes: one for a budget, or the frontier of all budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantaudit.errors import UsageError
from quantaudit.simulate.allocation.knapsack import cheapest_choice, supported_choices
from quantaudit.simulate.allocation.menu import UNQUANTIZED, Menu
from quantaudit.stats.interval import mean_interval

_ROUNDING = 1e-12
"""Relative: sums of prices in another order may differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One allocation. schemes: by fused group, the name of its scheme, UNQUANTIZED (None) where it is left as it is.

    size: bytes of the whole checkpoint's weights, with scales, in which all else keeps its dtype. bits: for each
    quantizable weight, scales included. price: sum of prices, nats per token. kl: estimated from it, or `measured`
    where this very recipe was simulated. kl_low, kl_high: its interval at the menu's level, None where that is not
    known.
    """

    schemes: Mapping[str, str | None]
    size: int
    bits: float
    price: float
    kl: float
    kl_low: float | None
    kl_high: float | None
    source: Literal["estimated", "measured"]


def frontier(menu: Menu) -> tuple[Point, ...]:
    """The allocations on the lower convex hull of size and summed prices, from the smallest to the least KL.

    Each has the least sum of prices of all allocations of its size or less; between two neighbors, which differ in one
    unit, `solve` finds others.
    """
    return tuple(point_of(menu, choice) for choice in supported_choices(_prices(menu), _sizes(menu)))


def solve(
    menu: Menu, *, max_size: float | None = None, max_kl: float | None = None, max_kl_high: float | None = None
) -> Point:
    """The best allocation within one limit: the least KL within `max_size` bytes of the whole checkpoint's weights, or
    the smallest whose KL, or the upper end of whose interval, is within a limit in nats per token.

    Exact: no other choice of options is better by the sum of prices. Raises UsageError where nothing is within the
    limit.
    """
    if [max_size, max_kl, max_kl_high].count(None) != 2:
        raise ValueError("one limit is needed")
    if max_size is not None:
        choice = cheapest_choice(_prices(menu), _sizes(menu), max_size - menu.rest)
        if choice is None:
            raise _impossible(menu, max_size)
        return point_of(menu, choice)
    return _smallest(menu, max_kl, max_kl_high)


def size_of_bits(menu: Menu, bits: float) -> int:
    """The size of a whole checkpoint whose quantizable weights take so many bits each."""
    return menu.rest + math.floor(bits * menu.weights / 8)


def uniform(menu: Menu, scheme: str) -> Point | None:
    """All groups in one scheme; None where some cannot have it."""
    if any(scheme not in unit.schemes for unit in menu.units):
        return None
    return point_of(menu, [unit.schemes.index(scheme) for unit in menu.units])


def point_of(menu: Menu, choice: Sequence[int]) -> Point:
    """What a choice, the index of an option for each unit, comes to."""
    picked = list(zip(menu.units, choice, strict=True))
    by_group = {group: unit.schemes[option] for unit, option in picked for group in unit.groups}
    schemes = {group: by_group[group] for group in menu.members}
    quantized = sum(unit.sizes[option] for unit, option in picked)
    price = sum(unit.prices[option] for unit, option in picked)
    kl, low, high, source = _kl(menu, set(schemes.values()), price)
    return Point(
        schemes=schemes,
        size=menu.rest + quantized,
        bits=8 * quantized / menu.weights,
        price=price,
        kl=kl,
        kl_low=low,
        kl_high=high,
        source=source,
    )


def _smallest(menu: Menu, max_kl: float | None, max_kl_high: float | None) -> Point:
    """The smallest allocation within a limit of KL. One that was simulated, and is beyond it, is passed over."""
    limit = max_kl if max_kl is not None else max_kl_high
    if limit is None or (max_kl is None and menu.factor is None):
        raise UsageError("nothing says how far estimates of this card miss", hint="give --max-kl instead")
    estimated = limit if max_kl is not None else limit / (menu.factor or 1.0)
    total = menu.estimate.total(estimated) * (1 + _ROUNDING)
    while (choice := cheapest_choice(_sizes(menu), _prices(menu), total)) is not None:
        point = point_of(menu, choice)
        reached = point.kl if max_kl is not None else point.kl_high
        if reached is not None and reached <= limit:
            return point
        if point.price <= 0:
            break
        total = point.price * (1 - _ROUNDING)
    least = point_of(menu, [min(range(len(u.prices)), key=lambda o: (u.prices[o], u.sizes[o])) for u in menu.units])
    reached = least.kl if max_kl is not None else least.kl_high
    known = "not known so surely" if reached is None else f"{reached:.3g} nats per token"
    raise UsageError(
        f"no recipe of this menu has so low a KL: the least is {known}",
        where=f"a KL of {limit:g}",
        hint="allow a higher one, or put more schemes on the menu",
    )


def _impossible(menu: Menu, max_size: float) -> UsageError:
    least = [min(unit.sizes) for unit in menu.units]
    size, bits = menu.rest + sum(least), 8 * sum(least) / menu.weights
    return UsageError(
        f"no recipe of this menu is so small: the smallest has {size:,} bytes of weights, {bits:.4g} bits for each "
        "quantizable one",
        where=f"{math.floor(max_size):,} bytes",
        hint="allow more, or put smaller schemes on the menu",
    )


def _kl(
    menu: Menu, schemes: set[str | None], price: float
) -> tuple[float, float | None, float | None, Literal["estimated", "measured"]]:
    """KL, its interval's ends, and how it is known."""
    if schemes == {UNQUANTIZED}:
        return 0.0, 0.0, 0.0, "measured"
    row = menu.measured.get(next(iter(schemes)) or "") if len(schemes) == 1 else None
    if row is not None and row.kl is not None and not row.nonfinite:
        if row.kl_stderr is None or row.samples < 2:
            return row.kl, None, None, "measured"
        interval = mean_interval(row.kl, row.kl_stderr, row.samples, menu.level)
        return row.kl, interval.low, interval.high, "measured"
    kl = menu.estimate.kl(price)
    if menu.factor is None:
        return kl, None, None, "estimated"
    return kl, kl / menu.factor, kl * menu.factor, "estimated"


def _prices(menu: Menu) -> list[tuple[float, ...]]:
    return [unit.prices for unit in menu.units]


def _sizes(menu: Menu) -> list[tuple[int, ...]]:
    return [unit.sizes for unit in menu.units]
