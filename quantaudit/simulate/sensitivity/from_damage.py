"""Prices without a backward pass: block damage mapped to KL by a monotone curve through a few simulated groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import t

from quantaudit.simulate.logits.rounding_floor import RoundingFloor
from quantaudit.simulate.records import GroupRow

ANCHORS = 8
"""Groups simulated one by one, spread over the damage that was found."""
FEWEST = 4
"""Anchors below which no uncertainty can be told, and no price is given."""


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """log KL against log damage: straight between the anchors, and with slope 1 beyond them. spread: of log KL, the
    half-width of a 95 % interval, from what each anchor is missed by when the others are fitted alone.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    spread: float

    def kl(self, damage: float) -> float:
        """KL, nats per token, of a group quantized alone; 0 for no damage."""
        if damage <= 0:
            return 0.0
        x = math.log(damage)
        beyond = min(x - self.x[0], 0.0) + max(x - self.x[-1], 0.0)
        return math.exp(float(np.interp(x, self.x, self.y)) + beyond)


def anchors(rows: Sequence[GroupRow], count: int = ANCHORS) -> list[GroupRow]:
    """Rows whose damages are nearest to evenly spaced ones on a logarithmic scale, the least and the most included."""
    known = sorted((row for row in rows if row.damage), key=lambda row: row.damage or 0.0)
    if not known:
        return []
    logs = np.log([row.damage or math.nan for row in known])
    wanted = np.linspace(logs[0], logs[-1], count)
    return [known[i] for i in sorted({int(np.abs(logs - x).argmin()) for x in wanted})]


def fit_damage(damage: Sequence[float], kl: Sequence[float]) -> DamageCurve:
    """Least squares among the curves that never fall (isotonic regression of logarithms); both positive, 4 or more."""
    x, y = _monotone(np.log(damage), np.log(kl))
    misses = []
    for i in range(len(damage)):
        others = DamageCurve(*_monotone(np.delete(np.log(damage), i), np.delete(np.log(kl), i)), 0.0)
        misses.append(math.log(others.kl(damage[i]) / kl[i]))
    spread = float(np.sqrt(np.mean(np.square(misses))) * t.ppf(0.975, len(misses) - 1))
    return DamageCurve(x, y, spread)


def prices_on_curve(rows: Sequence[GroupRow], floor: RoundingFloor) -> list[GroupRow]:
    """The rows with prices and their 95 % intervals: the KL that the curve tells, less the floor that any change costs.

    The curve goes through all rows that were simulated, which have a KL. Rows without damage keep a null price, and so
    do all where fewer than FEWEST were simulated.
    """
    found = [(row.damage, row.kl) for row in rows if row.damage and row.kl is not None and 0 < row.kl < math.inf]
    if len(found) < FEWEST:
        return list(rows)
    curve = fit_damage(*zip(*found, strict=True))
    return [_priced(row, curve, floor) for row in rows]


def _priced(row: GroupRow, curve: DamageCurve, floor: RoundingFloor) -> GroupRow:
    if row.damage is None or row.layer is None:
        return row
    kl, least = curve.kl(row.damage), floor.at(row.layer)
    low, price, high = (max(kl * math.exp(sign * curve.spread) - least, 0.0) for sign in (-1, 0, 1))
    return row.model_copy(update={"price": price, "price_low": low, "price_high": high})


def _monotone(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the curve in ascending x; equal x are averaged, so that the curve is a function."""
    distinct, where, weights = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(where, y) / weights
    return distinct, np.asarray(isotonic_regression(means, weights=weights).x)
