"""First phase of the compiled code: every element of a tensor is read once, by whichever threads call in.

A thread takes chunks of rows while there are any. Of a chunk it counts patterns, raises the channels' maxima and notes
each row's extremes; then it adds what it counted to the site's own counters.

Loops over a row do one thing each, in the patterns' own width: so they vectorize, but for counting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from quantaudit.stats.kernels.host_layout import (
    BINS,
    LOCKS,
    RANGES,
    UNKNOWN,
    array,
    batch_of,
    exchange,
    row_of,
    rows_of,
    sign_of,
)

HISTOGRAM, CHANNELS, EXTREMES, MASSIVE, PEAKS = (1 << k for k in range(5))
ALL = HISTOGRAM | CHANNELS | EXTREMES | MASSIVE | PEAKS
"""Statistics; some of them are left out only to learn what they cost."""
_LINE = 128
"""Counters that are added together, or skipped."""


@njit(nogil=True)
def count_chunk(site: Any, chunk: int, parts: int) -> None:
    """Statistics of a chunk's rows."""
    batch, rows = batch_of(site), rows_of(site)
    splits = array(batch.split, batch.samples, np.int64)
    rounded = np.empty(site.channels if site.wide else 0, np.uint16)
    for i in range(site.tensor_rows * chunk // site.chunks, site.tensor_rows * (chunk + 1) // site.chunks):
        segment = _segment(site, batch, i)
        rows[i].segment, rows[i].median = segment, UNKNOWN
        if segment < 0:
            continue
        state = site.states[splits[segment]]
        counts = array(batch.counters + 4 * BINS * chunk if site.hot else state.counts, BINS, np.uint32)
        if site.wide:
            wide = row_of(site, i, np.uint32)
            if parts & HISTOGRAM:
                _round(wide, rounded)
                _count(rounded, counts)
            _extremes(wide, array(state.amax, site.chunks * site.channels, np.uint32), chunk, rows[i], parts)
        else:
            short = row_of(site, i, np.uint16)
            if parts & HISTOGRAM:
                _count(short, counts)
            _extremes(short, array(state.amax, site.chunks * site.channels, np.uint16), chunk, rows[i], parts)
    if site.hot and parts & HISTOGRAM:
        _add_counters(site, batch, splits[0], chunk)


@njit(nogil=True)
def _segment(site: Any, batch: Any, row: int) -> int:
    """Which sample of the batch a row belongs to, −1 for none."""
    if site.valid and not array(site.valid + row, 1, np.uint8)[0]:
        return -1
    token = array(site.tokens + 8 * row, 1, np.int64)[0] if site.tokens else row
    return array(batch.segment + 8 * token, 1, np.int64)[0]


@njit(nogil=True)
def _count(patterns: Any, counts: Any) -> None:
    for c in range(len(patterns)):
        counts[patterns[c]] += np.uint32(1)


@njit(nogil=True)
def _extremes(patterns: Any, amax: Any, chunk: int, row: Any, parts: int) -> None:
    """Raise a chunk's maxima of channels by the magnitudes of a row, and note its lowest and highest key."""
    kind, sign, channels = patterns.dtype.type, sign_of(patterns), len(patterns)
    rest, mine = kind(~sign), amax[chunk * channels : (chunk + 1) * channels]
    if parts & CHANNELS:
        for c in range(channels):
            mine[c] = max(mine[c], kind(patterns[c] & rest))
    if parts & EXTREMES:
        low, high, top = kind(sign | rest), kind(0), 8 * patterns.itemsize - 1
        for c in range(channels):
            negative = kind(kind(0) - kind(patterns[c] >> top))
            key = kind(patterns[c] ^ kind(negative | sign))
            low, high = min(low, key), max(high, key)
        row.low, row.high = low, high


@njit(nogil=True)
def _round(wide: Any, rounded: Any) -> None:
    """float32 to bfloat16, both as patterns: nearest, ties to even; every NaN to the one that PyTorch makes of it."""
    for c in range(len(wide)):
        value = wide[c]
        even = np.uint32((value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        broken = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded[c] = np.uint16(0xFFFF) if broken else np.uint16(even)


@njit(nogil=True)
def _add_counters(site: Any, batch: Any, split: int, chunk: int) -> None:
    """Add a chunk's counters to the site's own, and clear them.

    Each chunk begins with another range, so that threads that end together do not wait for each other.
    """
    mine = array(batch.counters + 4 * BINS * chunk, BINS, np.uint32)
    counts = array(site.states[split].counts, BINS, np.uint32)
    first, size = RANGES * chunk // site.chunks, BINS // RANGES
    for step in range(RANGES):
        which = (first + step) % RANGES
        lock = site.batch + LOCKS + 8 * which
        while exchange(lock, 1):
            pass
        for start in range(which * size, (which + 1) * size, _LINE):
            some = np.uint32(0)
            for k in range(start, start + _LINE):
                some |= mine[k]
            if some:
                for k in range(start, start + _LINE):
                    counts[k] += mine[k]
                    mine[k] = 0
        exchange(lock, 0)
