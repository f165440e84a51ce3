"""Whether the arrays of a file can be statistics of one tensor: what could not have been counted, in words."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quantaudit.stats.peaks import KEPT
from quantaudit.stats.site import SiteStatistics


def problems(statistics: SiteStatistics, samples: int) -> Iterator[str]:
    """What contradicts itself. samples: how many the corpus has. Not finite values are allowed wherever they occur."""
    distribution, extremes, peaks = statistics.distribution, statistics.extremes, statistics.peaks
    for name, arrays in (
        ("distribution", (distribution.patterns, distribution.counts)),
        ("extremes", (extremes.sample, extremes.tokens, extremes.min, extremes.max)),
        ("peaks", (peaks.value, peaks.sample, peaks.position, peaks.token, peaks.channel, peaks.median)),
        ("channel_amax", (statistics.channel_amax,)),
    ):
        if any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
            yield f"arrays of {name} are not lists of one length"
            return
    if (distribution.counts <= 0).any() or (np.diff(distribution.patterns.astype(np.int64)) <= 0).any():
        yield "counts of its values are not all positive, of patterns that rise"
    if (extremes.tokens < 0).any() or (np.diff(extremes.sample.astype(np.int64)) <= 0).any():
        yield "tokens of its samples are below zero, or its samples do not rise"
    held = np.concatenate([extremes.sample, peaks.sample])
    if len(held) and not 0 <= held.min() <= held.max() < samples:
        yield f"samples that the corpus does not have: {held.min()} to {held.max()} of {samples}"
    if (extremes.min > extremes.max).any():
        yield "a sample's minimum is above its maximum"
    if (statistics.channel_amax < 0).any():
        yield "a channel's largest magnitude is below zero"
    yield from _peak_problems(statistics)
    values, channels = int(distribution.counts.sum()), len(statistics.channel_amax)
    if values != statistics.tokens * channels:
        yield f"{values:,} values were counted of {statistics.tokens:,} tokens in {channels:,} channels"
    if not 0 <= statistics.massive <= values:
        yield f"{statistics.massive:,} of {values:,} values are massive"


def _peak_problems(statistics: SiteStatistics) -> Iterator[str]:
    peaks = statistics.peaks
    magnitude = np.abs(peaks.value)
    if len(magnitude) > KEPT or not np.isfinite(magnitude).all() or (np.diff(magnitude) > 0).any():
        yield f"its peaks are not {KEPT} finite values at most, the highest first"
    if len(magnitude) and (peaks.position.min() < 0 or peaks.channel.min() < 0):
        yield "a peak lies at a position or a channel below zero"
    if len(magnitude) and peaks.channel.max() >= len(statistics.channel_amax):
        yield "a peak lies in a channel that the tensor does not have"
    if (peaks.median < 0).any():
        yield "the median magnitude of a peak's token is below zero"
