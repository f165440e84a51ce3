"""The distribution of |x| in few bins of equal ratio, as a page can draw it: counts by octave, or by part of one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantaudit.stats.distribution import Distribution, magnitudes

MOST_BINS = 32
PARTS = (4, 2, 1)
"""Bins that an octave may have, finest first."""
LEFT_BELOW = 0.001
"""Share of the non-zero values that the bins need not reach: a few tiny ones would make all bins wide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Octaves:
    """Counts of finite |x|. Bin i holds 2^((first + i) / parts) ≤ |x| < 2^((first + i + 1) / parts).

    zeros: exact zeros of either sign. below: other values under the first bin.
    """

    parts: int
    first: int
    zeros: int
    below: int
    counts: tuple[int, ...]


def octaves(distribution: Distribution) -> Octaves | None:
    """The finest of PARTS whose bins, at most MOST_BINS, reach from the largest value down to all but LEFT_BELOW.

    Where even whole octaves do not reach that far, the values under the last of them count as below. None without a
    finite value other than zero.
    """
    absolute, counts = magnitudes(distribution)
    some = absolute > 0
    if not some.any():
        return None
    exponents, kept = np.log2(absolute[some].astype(np.float64)), counts[some]
    cumulative = np.cumsum(kept)
    lowest = exponents[np.searchsorted(cumulative, LEFT_BELOW * cumulative[-1], side="right")]
    for parts in PARTS:
        # A power of two has an exact logarithm, and no other edge is a value of 16 bits: each is on its own side.
        places = np.floor(exponents * parts).astype(np.int64)
        first, last = int(np.floor(lowest * parts)), int(places[-1])
        if last - first < MOST_BINS:
            break
    first = max(first, last - MOST_BINS + 1)
    inside = places >= first
    binned = np.zeros(last - first + 1, np.int64)
    np.add.at(binned, places[inside] - first, kept[inside])
    return Octaves(
        parts=parts,
        first=first,
        zeros=int(counts[~some].sum()),
        below=int(kept[~inside].sum()),
        counts=tuple(binned.tolist()),
    )
