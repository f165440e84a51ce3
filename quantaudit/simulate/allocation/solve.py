"""The best allocations of schemes: one for a budget, or the frontier of all budgets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from quantaudit.errors import UsageError
from quantaudit.simulate.allocation.compute import TOTAL
from quantaudit.simulate.allocation.knapsack import Values, cheapest_choice, supported_choices
from quantaudit.simulate.allocation.menu import UNQUANTIZED, Menu
from quantaudit.simulate.allocation.two_limits import cheapest_within_both
from quantaudit.stats.interval import mean_interval

_ROUNDING = 1e-12
"""Relative: sums of prices in another order may differ by less."""
_TIE = 1e-3
"""Weight of the smaller cost of a choice, where the other is what is kept low: it decides among what is alike there."""
_MOST_BITS = 1024
"""More than a weight takes in any dtype, with scales."""
Cost: TypeAlias = Literal["bytes", "compute"]
"""What a choice takes when it is served: memory, and the time of its products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One allocation. schemes: by fused group, the name of its scheme, UNQUANTIZED (None) where it is left as it is.

    size: bytes of the whole checkpoint's weights, with scales, in which all else keeps its dtype. bits: for each
    quantizable weight, scales included. compute: time of its multiply-accumulates as a share of the unquantized
    model's, None where no hardware is given. price: sum of prices, nats per token. kl: estimated from it, or `measured`
    where this very recipe was simulated. kl_low, kl_high: its interval at the menu's level, None where that is not
    known.
    """

    schemes: Mapping[str, str | None]
    size: int
    bits: float
    compute: float | None
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What an allocation has to stay within.

    One of max_size, bytes of the whole checkpoint's weights, max_kl, and max_kl_high, the upper end of its interval, in
    nats per token; and max_compute, a share of the unquantized model's, alone or with one of these. least: which cost
    is kept low within a limit of KL; within others, it is the KL.
    """

    max_size: float | None = None
    max_kl: float | None = None
    max_kl_high: float | None = None
    max_compute: float | None = None
    least: Cost = "bytes"

    def __post_init__(self) -> None:
        given = 3 - [self.max_size, self.max_kl, self.max_kl_high].count(None)
        if given > 1 or (not given and self.max_compute is None):
            raise ValueError("one limit is needed, of size or of KL, or one of compute")

    @property
    def of_kl(self) -> bool:
        """Whether KL is limited, and a cost is kept low."""
        return self.max_kl is not None or self.max_kl_high is not None

    def holds(self, point: Point) -> bool:
        """Whether a point is within it; not, where that is not known."""
        pairs = (
            (point.size, self.max_size),
            (point.kl, self.max_kl),
            (point.kl_high, self.max_kl_high),
            (point.compute, self.max_compute),
        )
        return all(most is None or (value is not None and value <= most) for value, most in pairs)


def solve(menu: Menu, limit: Limit) -> Point:
    """The best allocation within a limit: the least KL, or the least cost within a limit of KL.

    Of what costs the same, that is the one with the least KL. Exact by the sum of prices; with two limits to within a
    part of it (`two_limits`). One scheme in all groups that was simulated, and is better, is taken before what is
    estimated to be best. Raises UsageError where nothing is within the limit.
    """
    points = [point for point in _simulated(menu) if limit.holds(point)]
    try:
        points.insert(0, _least_cost(menu, limit) if limit.of_kl else _least_price(menu, limit))
    except UsageError:
        if not points:
            raise
    return min(points, key=lambda point: (_cost(point, limit), point.kl))


def _simulated(menu: Menu) -> Iterator[Point]:
    """One scheme in all groups, of those whose KL was measured."""
    points = (uniform(menu, name) for name in menu.measured)
    return (point for point in points if point is not None and point.source == "measured")


def _cost(point: Point, limit: Limit) -> float:
    """What a limit leaves to be kept low."""
    if not limit.of_kl:
        return point.kl
    return point.size if limit.least == "bytes" else point.compute or 0.0


def _least_price(menu: Menu, limit: Limit) -> Point:
    """The least sum of prices within limits of bytes and compute. Raises UsageError where nothing is within them."""
    choice = _within(menu, _prices(menu), limit, limit.max_size)
    if choice is None:
        raise _impossible(menu, limit)
    return point_of(menu, choice)


def _within(menu: Menu, costs: Values, limit: Limit, max_size: float | None) -> list[int] | None:
    """The least Σ costs within limits of bytes and compute, one of them or both."""
    compute = None if limit.max_compute is None else _parts(limit.max_compute)
    if max_size is None:
        return cheapest_choice(costs, _compute(menu), math.inf if compute is None else compute)
    if compute is None:
        return cheapest_choice(costs, _sizes(menu), max_size - menu.rest)
    return cheapest_within_both(costs, _sizes(menu), max_size - menu.rest, _compute(menu), compute)


def size_of_bits(menu: Menu, bits: float) -> int:
    """The size of a whole checkpoint whose quantizable weights take so many bits each."""
    return menu.rest + math.floor(min(bits, _MOST_BITS) * menu.weights / 8)


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
    compute = sum(unit.compute[option] for unit, option in picked) / TOTAL
    price = sum(unit.prices[option] for unit, option in picked)
    kl, low, high, source = _kl(menu, set(schemes.values()), price)
    return Point(
        schemes=schemes,
        size=menu.rest + quantized,
        bits=8 * quantized / menu.weights,
        compute=None if menu.serving is None else compute,
        price=price,
        kl=kl,
        kl_low=low,
        kl_high=high,
        source=source,
    )


def _least_cost(menu: Menu, limit: Limit) -> Point:
    """The cheapest allocation within a limit of KL. One that was simulated, and is beyond it, is passed over."""
    most = limit.max_kl if limit.max_kl is not None else limit.max_kl_high
    if most is None or (limit.max_kl is None and menu.factor is None):
        raise UsageError("nothing says how far estimates of this card miss", hint="give --max-kl instead")
    estimated = most if limit.max_kl is not None else most / (menu.factor or 1.0)
    costs, total = _costs(menu, limit.least), menu.estimate.total(estimated) * (1 + _ROUNDING)
    while (choice := _cheapest(menu, costs, total, limit)) is not None:
        point = point_of(menu, choice)
        reached = point.kl if limit.max_kl is not None else point.kl_high
        if reached is not None and reached <= most:
            return _least_price_alike(menu, limit, point)
        if point.price <= 0:
            break
        total = point.price * (1 - _ROUNDING)
    try:
        least = _least_price(menu, Limit(max_compute=math.inf if limit.max_compute is None else limit.max_compute))
    except UsageError as error:
        raise _impossible(menu, limit) from error
    reached = least.kl if limit.max_kl is not None else least.kl_high
    known = "not known so surely" if reached is None else f"{reached:.3g} nats per token"
    within = "" if limit.max_compute is None else f" at {limit.max_compute:.4g} of the compute"
    raise UsageError(
        f"no recipe of this menu has so low a KL{within}: the least is {known}",
        where=f"a KL of {most:g}",
        hint="allow a higher one, or put more on the menu: other schemes, or --unquantized",
    )


def _least_price_alike(menu: Menu, limit: Limit, point: Point) -> Point:
    """The least sum of prices at the cost of a point, which may use all of a limit of KL for nothing."""
    if limit.least == "bytes":
        alike = _least_price(menu, Limit(max_size=point.size, max_compute=limit.max_compute))
    else:
        alike = _least_price(menu, Limit(max_compute=point.compute))
    return alike if alike.price < point.price and limit.holds(alike) else point


def _cheapest(menu: Menu, costs: Values, total: float, limit: Limit) -> list[int] | None:
    """The least Σ costs within a sum of prices, and within a limit of compute where there is one."""
    if limit.max_compute is None:
        return cheapest_choice(costs, _prices(menu), total)
    return cheapest_within_both(costs, _prices(menu), total, _compute(menu), _parts(limit.max_compute))


def _impossible(menu: Menu, limit: Limit) -> UsageError:
    fastest = None
    if limit.max_compute is not None:
        size = math.inf if limit.max_size is None else limit.max_size - menu.rest
        fastest = cheapest_choice(_compute(menu), _sizes(menu), size)
    if fastest is not None:
        return UsageError(
            f"no recipe of this menu takes so little{' in so few bytes' if limit.max_size is not None else ''}: the "
            f"least compute is {point_of(menu, fastest).compute:.4g} of the unquantized model's",
            where=f"{limit.max_compute:g} of the compute",
            hint="allow more of it or of the other budget, or put faster schemes on the menu",
        )
    smallest = [min(unit.sizes) for unit in menu.units]
    size, bits = menu.rest + sum(smallest), 8 * sum(smallest) / menu.weights
    return UsageError(
        f"no recipe of this menu is so small: the smallest has {size:,} bytes of weights, {bits:.4g} bits for each "
        "quantizable one",
        where=f"{math.floor(limit.max_size or 0):,} bytes",
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


def _compute(menu: Menu) -> list[tuple[int, ...]]:
    return [unit.compute for unit in menu.units]


def _parts(share: float) -> float:
    """A share of the unquantized compute as menus count it; one that was told of a sum of theirs holds that sum."""
    return share * TOTAL * (1 + _ROUNDING)


def _costs(menu: Menu, least: Cost) -> list[tuple[float, ...]]:
    """What is kept low: bytes, or compute, of which many choices have alike, so that bytes count a little, too."""
    if least == "bytes":
        return [tuple(map(float, unit.sizes)) for unit in menu.units]
    most = sum(max(unit.sizes) for unit in menu.units)
    return [
        tuple(c / TOTAL + _TIE * size / most for c, size in zip(unit.compute, unit.sizes, strict=True))
        for unit in menu.units
    ]
