"""Prices without a backward pass: block damage mapped to KL by a monotone curve through a few simulated groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import t

if TYPE_CHECKING:
    from quantaudit.simulate.group_effect import GroupEffect
    from quantaudit.simulate.logits.rounding_floor import RoundingFloor

ANCHORS = 8
"""Groups simulated one by one, spread over the range of damage."""
FEWEST = 4
"""Anchors below which no uncertainty can be given, and no price is."""


@dataclass(frozen=True, slots=True)
class DamageCurve:
    """log KL against log damage: straight between the anchors, and with slope 1 outside them. spread: of log KL, the
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
        outside = min(x - self.x[0], 0.0) + max(x - self.x[-1], 0.0)
        return math.exp(float(np.interp(x, self.x, self.y)) + outside)


def anchors(effects: Sequence[GroupEffect], count: int = ANCHORS) -> list[GroupEffect]:
    """Effects whose damages are nearest to evenly spaced ones on a logarithmic scale, from the least to the most."""
    damaged = sorted((effect for effect in effects if effect.damage), key=lambda effect: effect.damage or 0.0)
    if not damaged:
        return []
    logs = np.log([effect.damage or math.nan for effect in damaged])
    targets = np.linspace(logs[0], logs[-1], count)
    return [damaged[i] for i in sorted({int(np.abs(logs - x).argmin()) for x in targets})]


def fit_damage(damage: Sequence[float], kl: Sequence[float]) -> DamageCurve:
    """Least squares among the curves that never fall (isotonic regression of logarithms); both positive, 4 or more."""
    x, y = _monotone(np.log(damage), np.log(kl))
    misses = []
    for i in range(len(damage)):
        others = DamageCurve(*_monotone(np.delete(np.log(damage), i), np.delete(np.log(kl), i)), 0.0)
        misses.append(math.log(others.kl(damage[i]) / kl[i]))
    spread = float(np.sqrt(np.mean(np.square(misses))) * t.ppf(0.975, len(misses) - 1))
    return DamageCurve(x, y, spread)


def fill_prices(effects: Sequence[GroupEffect], floor: RoundingFloor) -> None:
    """Set prices and their 95 % intervals: the KL on the curve of damage, less the floor that any change costs.

    The curve goes through all groups that were simulated, which have a KL. Groups without damage keep None, and so do
    all where fewer than FEWEST were simulated.
    """
    pairs = [(e.damage, e.kl) for e in effects if e.damage and e.kl is not None and 0 < e.kl < math.inf]
    if len(pairs) < FEWEST:
        return
    curve = fit_damage(*zip(*pairs, strict=True))
    for effect in effects:
        if effect.damage is not None and effect.group.layer is not None:
            kl, least = curve.kl(effect.damage), floor.at(effect.group.layer)
            effect.price_low, effect.price, effect.price_high = (
                max(kl * math.exp(sign * curve.spread) - least, 0.0) for sign in (-1, 0, 1)
            )


def _monotone(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the curve in ascending x; equal x are averaged, so that the curve is a function."""
    distinct, where, weights = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(where, y) / weights
    return distinct, np.asarray(isotonic_regression(means, weights=weights).x)
