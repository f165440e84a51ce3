"""The elements of largest magnitude, with where each one was: sample, position, token and channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KEPT = 100
"""Peaks a profile keeps for each site and split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """At most KEPT finite, non-zero elements, by falling |value|, then rising sample, position and channel.

    value: float32 [n], signed. sample, position, token, channel: int32 [n]; position counts from the sample's start.
    median: float32 [n], the median of |x| over the channels of the peak's own token.
    """

    value: NDArray[np.float32]
    sample: NDArray[np.int32]
    position: NDArray[np.int32]
    token: NDArray[np.int32]
    channel: NDArray[np.int32]
    median: NDArray[np.float32]


def zero() -> Peaks:
    """The identity of `merge`."""
    empty = np.empty(0, np.int32)
    none = np.empty(0, np.float32)
    return Peaks(value=none, sample=empty, position=empty, token=empty, channel=empty, median=none)


def merge(a: Peaks, b: Peaks) -> Peaks:
    """The highest of both: associative, commutative, `zero` is its identity."""
    return select(
        value=np.concatenate([a.value, b.value]),
        sample=np.concatenate([a.sample, b.sample]),
        position=np.concatenate([a.position, b.position]),
        token=np.concatenate([a.token, b.token]),
        channel=np.concatenate([a.channel, b.channel]),
        median=np.concatenate([a.median, b.median]),
    )


def select(
    *,
    value: NDArray[np.float32],
    sample: NDArray[np.int32],
    position: NDArray[np.int32],
    token: NDArray[np.int32],
    channel: NDArray[np.int32],
    median: NDArray[np.float32],
) -> Peaks:
    """The KEPT highest of the given elements. The order is total, so ties never depend on who came first."""
    magnitude = np.abs(value)
    # Most of many are out at once: sorting by four keys is for those that reach the KEPT-th magnitude.
    within = (
        np.flatnonzero(magnitude >= np.partition(magnitude, -KEPT)[-KEPT])
        if len(value) > KEPT
        else np.arange(len(value))
    )
    order = within[np.lexsort((channel[within], position[within], sample[within], -magnitude[within]))[:KEPT]]
    return Peaks(
        value=value[order],
        sample=sample[order],
        position=position[order],
        token=token[order],
        channel=channel[order],
        median=median[order],
    )


def floor(peaks: Peaks) -> float:
    """Magnitude below which a new element cannot enter; 0 while there is room."""
    return float(abs(peaks.value[-1])) if len(peaks.value) == KEPT else 0.0
