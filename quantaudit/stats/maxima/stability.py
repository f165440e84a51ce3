"""How far a peak can be trusted, from the maxima of single samples and without running the model again.

A bootstrap, which draws with replacement, is inconsistent for a maximum; subsets are drawn without replacement here.
Nothing has to be drawn in fact: over all subsets of n out of N values the law of their maximum is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from quantaudit.stats import distribution
from quantaudit.stats.extremes import Extremes
from quantaudit.stats.site import SiteStatistics

Floats = NDArray[np.float64]

SPARE = 5
"""A subset of n is described only where there are at least SPARE·n samples: larger ones overlap too much."""
LENGTHS = (1, 64, 256, 1024)
"""Where buckets of sample lengths (tokens) begin."""
_SIZES = tuple(step * 10**power for power in range(8) for step in (1, 2, 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    """The maximum over subsets of `samples` samples. mean, std in the data's units; variation = std/mean."""

    samples: int
    mean: float
    std: float
    variation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StratifiedSubset:
    """The maximum over subsets of `samples` samples that hold every domain in proportion.

    mean, std in the data's units; variation = std/mean. spread: the largest less the smallest of `repeats` subsets,
    over the mean, on average: what arXiv 2605.15572 reports of five.
    """

    samples: int
    repeats: int
    mean: float
    std: float
    variation: float
    spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The largest of some samples' maxima."""

    samples: int
    amax: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Exceedance:
    """What of the evaluation split lies beyond the calibration split's absolute maximum.

    ratio: evaluation amax over calibration amax. beyond: evaluation samples (of `samples`) and elements (share of all)
    beyond it. For tensors wider than 16 bits, elements count as beyond when they still are after rounding.
    """

    calibration_amax: float
    evaluation_amax: float
    ratio: float
    samples: int
    samples_beyond: int
    share_elements: float


def sample_amax(extremes: Extremes) -> Floats:
    """Absolute maximum of every sample, float64 [samples], in their order; NaN where a sample held one."""
    return np.maximum(extremes.max, -extremes.min).astype(np.float64)


def subset_sizes(samples: int, spare: int = SPARE) -> list[int]:
    """Sizes 5, 10, 20, 50, … of which `samples` holds at least `spare` times as many, and the largest such one."""
    largest = samples // spare
    sizes = {size for size in _SIZES if 5 <= size <= largest}
    return sorted(sizes | {largest}) if largest >= 5 else []


def subset_maximum(amax: Floats, size: int) -> Subset:
    """Mean and deviation of the maximum over all subsets of `size` of these values, exactly.

    amax: float64 [N], finite. The k-th smallest value is the maximum of C(k−1, n−1) of the C(N, n) subsets.
    """
    ordered, n = np.sort(amax), size
    rank = np.arange(n, len(ordered) + 1, dtype=np.float64)
    logs = gammaln(rank) - gammaln(rank - n + 1)
    weight = np.exp(logs - logs.max())
    weight /= weight.sum()
    values = ordered[n - 1 :]
    mean = float(weight @ values)
    std = float(np.sqrt(weight @ (values - mean) ** 2))
    return Subset(samples=size, mean=mean, std=std, variation=std / mean if mean else 0.0)


def stratified_maximum(amax: Floats, labels: Sequence[str], size: int, repeats: int) -> StratifiedSubset:
    """The maximum over all subsets of `size` of these values that hold every label in proportion, exactly.

    amax: float64 [N], finite. labels: that of each value. Of N_d values with a label n_d are drawn without replacement,
    by the method of largest remainders; the maximum is at most v with probability ∏ C(k_d, n_d) / C(N_d, n_d), where
    k_d of the label's values are at most v. Subsets are drawn anew each time, and may share values.
    """
    values, names = np.sort(amax), np.asarray(labels)
    shares = proportional({name: int((names == name).sum()) for name in sorted(set(labels))}, size)
    logs = np.zeros(len(values))
    for name, drawn in shares.items():
        own = np.sort(amax[names == name])
        logs += _log_share_of_draws(np.searchsorted(own, values, side="right"), len(own), drawn)
    below = np.exp(logs)  # non-decreasing: P(maximum ≤ values[i])
    mean = _expectation(values, below)
    deviation = float(np.sqrt(_expectation((values - mean) ** 2, below)))
    lowest, highest = _expectation(values, 1 - (1 - below) ** repeats), _expectation(values, below**repeats)
    return StratifiedSubset(
        samples=size,
        repeats=repeats,
        mean=mean,
        std=deviation,
        variation=deviation / mean if mean else 0.0,
        spread=(highest - lowest) / mean if mean else 0.0,
    )


def proportional(counts: Mapping[str, int], size: int) -> dict[str, int]:
    """How many of each are drawn for `size` in all, none more than there are: the method of largest remainders."""
    total = sum(counts.values())
    exact = {name: size * count / total for name, count in counts.items()}
    drawn = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: drawn[name] - exact[name])
    for name in by_remainder[: size - sum(drawn.values())]:
        drawn[name] += 1
    return drawn


def _log_share_of_draws(within: NDArray[np.int64], of: int, drawn: int) -> Floats:
    """log C(k, n) / C(N, n): the share of draws of n out of N that fall among k of them, −inf where n > k."""
    k = within.astype(np.float64)
    possible = np.maximum(k, drawn)
    logs = gammaln(possible + 1) - gammaln(possible - drawn + 1) - gammaln(of + 1) + gammaln(of - drawn + 1)
    return np.where(k >= drawn, np.minimum(logs, 0.0), -np.inf)


def _expectation(values: Floats, below: Floats) -> float:
    """Mean of values that are taken with the distribution function `below`, of the same order."""
    return float(np.diff(below, prepend=0.0) @ values)


def maxima_by(amax: Floats, labels: Sequence[str]) -> dict[str, Bucket]:
    """Label → its samples and their largest amax, by label. amax: finite."""
    values: dict[str, list[float]] = {}
    for label, value in zip(labels, amax, strict=True):
        values.setdefault(label, []).append(float(value))
    return {label: Bucket(samples=len(of_label), amax=max(of_label)) for label, of_label in sorted(values.items())}


def maxima_by_length(amax: Floats, tokens: NDArray[np.int32]) -> list[tuple[int, int | None, Bucket]]:
    """(first, last, bucket) of every length bucket that holds samples, in tokens; last is None for the open one."""
    ends: list[int | None] = [start - 1 for start in LENGTHS[1:]]
    buckets = []
    for first, last in zip(LENGTHS, [*ends, None], strict=True):
        inside = (tokens >= first) & (tokens <= (last or np.inf))
        if inside.any():
            buckets.append((first, last, Bucket(samples=int(inside.sum()), amax=float(amax[inside].max()))))
    return buckets


def exceedance(calibration: SiteStatistics, evaluation: SiteStatistics) -> Exceedance | None:
    """The evaluation split against the calibration range; None where a split has no finite sample, or only zeros."""
    reference, evaluated = finite_amax(calibration.extremes), finite_amax(evaluation.extremes)
    if not len(reference) or not len(evaluated) or not reference.max():
        return None
    limit = float(reference.max())
    absolute, counts = distribution.magnitudes(evaluation.distribution)
    covered = distribution.magnitudes(calibration.distribution)[0].max()
    return Exceedance(
        calibration_amax=limit,
        evaluation_amax=float(evaluated.max()),
        ratio=float(evaluated.max()) / limit,
        samples=len(evaluated),
        samples_beyond=int((evaluated > limit).sum()),
        share_elements=float(counts[absolute > covered].sum() / counts.sum()),
    )


def finite_amax(extremes: Extremes) -> Floats:
    """`sample_amax` of the samples where it is finite."""
    amax = sample_amax(extremes)
    return amax[np.isfinite(amax)]


def worst_exceedances(
    splits: Mapping[str, tuple[SiteStatistics | None, SiteStatistics | None]],
) -> list[tuple[str, Exceedance]]:
    """Site → (calibration, evaluation) as (site, exceedance) where it goes beyond, the largest ratio first."""
    beyond = [
        (name, row)
        for name, (calibration, evaluation) in splits.items()
        if calibration is not None and evaluation is not None
        if (row := exceedance(calibration, evaluation)) is not None and row.samples_beyond
    ]
    return sorted(beyond, key=lambda pair: (-pair[1].ratio, pair[0]))
