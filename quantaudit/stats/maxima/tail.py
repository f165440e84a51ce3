"""How much higher would ten times the samples go: a generalized Pareto tail with a prediction interval.

The largest of n sample maxima says little about the largest of many more. Above a high threshold u, excesses of almost
any distribution follow a generalized Pareto law (Pickands 1975), S(y) = (1 + ξ·y/σ)^(−1/ξ), whose shape ξ says
how heavy the tail is. ξ and σ are not known but estimated from a few excesses, and most of the uncertainty of an
extrapolation comes from there: they are integrated out over their posterior on a grid (predictive likelihood). Nothing
is drawn at random. `benchmarks/tail_coverage.py` measures how often the interval is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

HORIZON = 10
"""Predictions are for this many times as many new samples."""
COVERAGE = 0.95
TAIL_SHARE = 0.1
"""Share of the samples, the highest ones, that the tail is fitted to …"""
TAIL_LEAST, TAIL_MOST = 20, 200
"""… and how many of them at least and at most."""
FIT_LEAST = 40
"""Below so many samples nothing is estimated."""
TRUSTED = 500
"""Below so many samples an estimate is flagged."""

_SHAPES = np.arange(-0.98, 1.5, 0.04)  # misses 0, where the law needs a formula of its own
_LOG_SCALES = np.linspace(-2.0, 1.0, 41)  # around the logarithm of the mean excess
_PRIOR_CENTRE, _PRIOR_SPREAD = 0.25, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """A fitted tail and what it predicts, in the units of the data.

    samples: values given. exceedances: those above `threshold`, which the fit rests on. shape, scale: posterior medians
    of ξ and σ. low, median, high: prediction interval (COVERAGE) and median of the largest of `horizon` new samples.
    """

    samples: int
    exceedances: int
    threshold: float
    shape: float
    scale: float
    horizon: int
    low: float
    median: float
    high: float

    @property
    def few(self) -> bool:
        """Whether the samples are too few for the interval to be trusted."""
        return self.samples < TRUSTED


def log_density(excess: ArrayLike, shape: ArrayLike, scale: ArrayLike) -> Floats:
    """Logarithm of the generalized Pareto density, broadcast; −∞ beyond the end of a bounded tail (ξ < 0).

    scipy.stats.genpareto.logpdf(excess, shape, scale=scale) without its overhead; shape is never exactly 0 here.
    """
    xi, sigma = np.asarray(shape, np.float64), np.asarray(scale, np.float64)
    inside = 1 + xi * np.asarray(excess, np.float64) / sigma
    with np.errstate(divide="ignore", invalid="ignore"):
        density = -np.log(sigma) - (1 / xi + 1) * np.log(inside)
    return np.where(inside > 0, density, -np.inf)


def fit(maxima: Floats) -> Tail | None:
    """The tail of finite sample maxima, float64 [n]; None where they are too few, or too equal to have a tail."""
    n = len(maxima)
    if n < FIT_LEAST:
        return None
    ordered = np.sort(maxima)
    threshold = float(ordered[n - 1 - min(max(round(TAIL_SHARE * n), TAIL_LEAST), TAIL_MOST)])
    excess = ordered[ordered > threshold] - threshold  # fewer than asked for where values tie with the threshold
    if len(excess) < TAIL_LEAST // 2 or len(np.unique(excess)) < TAIL_LEAST // 4:
        return None
    shapes, scales, weights = posterior(excess)
    low, median, high = (
        threshold + predictive_quantile(level, HORIZON * len(excess), shapes, scales, weights)
        for level in ((1 - COVERAGE) / 2, 0.5, (1 + COVERAGE) / 2)
    )
    return Tail(
        samples=n,
        exceedances=len(excess),
        threshold=threshold,
        shape=_median(shapes, weights),
        scale=_median(scales, weights),
        horizon=HORIZON * n,
        low=low,
        median=median,
        high=high,
    )


def posterior(excess: Floats) -> tuple[Floats, Floats, Floats]:
    """Grid points (ξ, σ) and their posterior weights, each float64 [points], the negligible ones left out.

    The prior is flat in log σ, which makes the fit free of units, and normal in ξ (mean and deviation 0.25): it leans
    to heavy tails, which keeps the interval honest where excesses are few.
    """
    centre = np.log(excess.mean())
    shape, log_scale = (grid.ravel() for grid in np.meshgrid(_SHAPES, centre + _LOG_SCALES, indexing="ij"))
    scale = np.exp(log_scale)
    likelihood = log_density(excess[None, :], shape[:, None], scale[:, None]).sum(1)
    log_weight = likelihood - 0.5 * ((shape - _PRIOR_CENTRE) / _PRIOR_SPREAD) ** 2
    weight = np.exp(log_weight - log_weight.max())
    kept = weight > 1e-6
    return shape[kept], scale[kept], weight[kept] / weight[kept].sum()


def predictive_quantile(level: float, expected: float, shapes: Floats, scales: Floats, weights: Floats) -> float:
    """The `level` quantile of the largest excess among new samples of which `expected` exceed the threshold on average.

    P(max ≤ y) = Σ weight·exp(−expected·S(y)), the number of exceedances being Poisson; solved by bisection in y.
    """

    def below(y: float) -> float:
        inside = np.maximum(1 + shapes * y / scales, 0.0)
        with np.errstate(divide="ignore"):
            survival = np.where(inside > 0, inside ** (-1 / shapes), 0.0)
        return float(weights @ np.exp(-expected * survival))

    low, high = 0.0, float(scales.max())
    while below(high) < level:
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < level else (low, middle)
    return high


def _median(values: Floats, weights: Floats) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), 0.5)])
