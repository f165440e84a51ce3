"""Everything that is kept about one tensor in one split."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from quantaudit.stats import channels, distribution, extremes, peaks
from quantaudit.stats.distribution import Distribution, Encoding
from quantaudit.stats.extremes import Extremes
from quantaudit.stats.peaks import Peaks


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatistics:
    """Distribution, extremes by sample, per-channel amax (float32 [channels]) and peaks of one tensor.

    massive: elements of |x| > 100 and > 1,000 medians of |x| over their own token: the criterion of
    Sun et al. 2024 (arXiv 2402.17762) with the median that arXiv 2605.15572 takes.
    """

    distribution: Distribution
    extremes: Extremes
    channel_amax: NDArray[np.float32]
    peaks: Peaks
    massive: int

    @property
    def tokens(self) -> int:
        """Token positions that were counted."""
        return int(self.extremes.tokens.sum())

    @property
    def range(self) -> tuple[float, float]:
        """Exact minimum and maximum over all samples; NaN where a sample held one, or where there is none."""
        if not len(self.extremes.sample):
            return float("nan"), float("nan")
        return float(self.extremes.min.min()), float(self.extremes.max.max())


def zero(encoding: Encoding) -> SiteStatistics:
    """The identity of `merge`."""
    return SiteStatistics(
        distribution=distribution.zero(encoding),
        extremes=extremes.zero(),
        channel_amax=channels.zero(),
        peaks=peaks.zero(),
        massive=0,
    )


def merge(a: SiteStatistics, b: SiteStatistics) -> SiteStatistics:
    """Statistics of both: associative, commutative, `zero` is its identity.

    Raises ValueError where widths or encodings differ.
    """
    return SiteStatistics(
        distribution=distribution.merge(a.distribution, b.distribution),
        extremes=extremes.merge(a.extremes, b.extremes),
        channel_amax=channels.merge(a.channel_amax, b.channel_amax),
        peaks=peaks.merge(a.peaks, b.peaks),
        massive=a.massive + b.massive,
    )


def summary(statistics: SiteStatistics) -> distribution.Summary:
    """Descriptive numbers; min, max and amax exact even where the distribution was rounded (float32 tensors)."""
    described = distribution.summary(statistics.distribution)
    low, high = statistics.extremes.min, statistics.extremes.max
    if not len(low) or not (np.isfinite(low).all() and np.isfinite(high).all()):
        return described
    smallest, largest = float(low.min()), float(high.max())
    return replace(described, min=smallest, max=largest, amax=max(-smallest, largest))
