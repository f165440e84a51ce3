"""Statistics of a profile as plain arrays by name, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from quantaudit.provenance import SPLITS, Split
from quantaudit.stats.distribution import Distribution, Encoding
from quantaudit.stats.extremes import Extremes
from quantaudit.stats.peaks import Peaks
from quantaudit.stats.site import SiteStatistics


def statistics_arrays(
    statistics: Mapping[tuple[str, Split], SiteStatistics],
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Statistics as arrays by `<site>/<split>/<name>`, and by `<site>/<split>/` how values are encoded."""
    arrays: dict[str, np.ndarray] = {}
    encodings: dict[str, str] = {}
    for (site, split), value in sorted(statistics.items()):
        key = f"{site}/{split}/"
        encodings[key] = value.distribution.encoding
        arrays |= {key + name: np.ascontiguousarray(array) for name, array in arrays_of(value).items()}
    return arrays, encodings


def statistics_from(
    arrays: Mapping[str, np.ndarray], encodings: Mapping[str, Encoding]
) -> dict[tuple[str, Split], SiteStatistics]:
    """The inverse of `statistics_arrays`. Raises KeyError, TypeError and ValueError for others."""
    for key, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"{key} has {array.ndim} axes, and every array of a profile has one")
    return {_key(key): _statistics(key, value, arrays) for key, value in encodings.items()}


def arrays_of(value: SiteStatistics) -> dict[str, np.ndarray]:
    """The statistics of one tensor as the arrays that a file holds, by name."""
    d, e, p = value.distribution, value.extremes, value.peaks
    return {
        "patterns": d.patterns,
        # A mixture has tens of thousands of distributions, with small counts in nearly all of them.
        "counts": d.counts.astype(np.min_scalar_type(int(d.counts.max(initial=0)))),
        "sample": e.sample,
        "tokens": e.tokens,
        "min": e.min,
        "max": e.max,
        "channel_amax": value.channel_amax,
        "peak_value": p.value,
        "peak_sample": p.sample,
        "peak_position": p.position,
        "peak_token": p.token,
        "peak_channel": p.channel,
        "peak_median": p.median,
        "massive": np.asarray([value.massive], np.int64),
    }


def _key(key: str) -> tuple[str, Split]:
    site, split = key.removesuffix("/").rsplit("/", 1)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}")
    return site, split


def _statistics(key: str, encoding: Encoding, arrays: Mapping[str, np.ndarray]) -> SiteStatistics:
    if encoding not in get_args(Encoding):
        raise ValueError(f"unknown encoding {encoding!r}")
    return SiteStatistics(
        distribution=Distribution(
            encoding=encoding, patterns=arrays[key + "patterns"], counts=arrays[key + "counts"].astype(np.int64)
        ),
        extremes=Extremes(
            sample=arrays[key + "sample"],
            tokens=arrays[key + "tokens"],
            min=arrays[key + "min"],
            max=arrays[key + "max"],
        ),
        channel_amax=arrays[key + "channel_amax"],
        peaks=Peaks(
            value=arrays[key + "peak_value"],
            sample=arrays[key + "peak_sample"],
            position=arrays[key + "peak_position"],
            token=arrays[key + "peak_token"],
            channel=arrays[key + "peak_channel"],
            median=arrays[key + "peak_median"],
        ),
        massive=int(arrays[key + "massive"][0]),
    )
