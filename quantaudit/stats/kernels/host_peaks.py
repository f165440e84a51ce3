"""Second phase of the compiled code, by one thread: extremes of samples, and rows that may hold a peak or a massive
activation.

`kind` is the type of patterns, uint16 or uint32. A magnitude is a pattern without its
sign; magnitudes are ordered like the numbers that they stand for, infinity and NaN behind all finite ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit

from quantaudit.stats.kernels import host_layout as layout
from quantaudit.stats.kernels.host_count import EXTREMES, MASSIVE, PEAKS
from quantaudit.stats.kernels.host_layout import BINS, LIMIT, UNKNOWN, array, batch_of, row_of, rows_of, sign_of

_BLOCK = 64
"""Channels of which the largest is looked at first."""
_COUNTABLE = 1 << 15
"""Channels that are counted in the patterns' own width."""


@njit(nogil=True)
def finish_tensor(site: Any, kind: Any, parts: int) -> None:
    """Add to the site what is seen only once all rows are known."""
    sign = np.int64(sign_of(row_of(site, 0, kind)))
    infinity = (sign - 1) >> site.mantissa << site.mantissa
    batch = batch_of(site)
    segments = array(batch.segments, batch.samples, layout.SEGMENT)
    if parts & EXTREMES:
        _summarize(site, batch, segments, sign, infinity)
    if parts & MASSIVE:
        _count_massive(site, batch, kind, sign, infinity)
    if parts & PEAKS:
        _find_peaks(site, batch, segments, kind, sign, infinity)


# Extremes ------------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _magnitude(extremes: Any, sign: int) -> int:
    """The largest magnitude of a row or sample."""
    low, high = np.int64(extremes.low), np.int64(extremes.high)
    return max(high - sign if high >= sign else 0, sign - 1 - low if low < sign else 0)


@njit(nogil=True)
def _pattern(key: int, sign: int) -> int:
    """The pattern that has this key."""
    return key - sign if key >= sign else 2 * sign - 1 - key


@njit(nogil=True)
def _summarize(site: Any, batch: Any, segments: Any, sign: int, infinity: int) -> None:
    """Extremes of each sample, from its rows', appended to its split's list."""
    for s in range(len(segments)):
        segments[s].rows, segments[s].low, segments[s].high = 0, np.uint32(2 * sign - 1), 0
    rows = rows_of(site)
    for i in range(len(rows)):
        if rows[i].segment >= 0:
            segment = segments[rows[i].segment]
            segment.rows += np.uint32(1)
            segment.low, segment.high = min(segment.low, rows[i].low), max(segment.high, rows[i].high)
    samples = array(batch.sample, batch.samples, np.int64)
    splits = array(batch.split, batch.samples, np.int64)
    for s in range(len(segments)):
        if segments[s].rows:
            state = site.states[splits[s]]
            new = array(state.extremes, state.samples + 1, layout.EXTREMES)[state.samples]
            new.sample, new.tokens = samples[s], segments[s].rows
            new.min, new.max = _pattern(segments[s].low, sign), _pattern(segments[s].high, sign)
            if _magnitude(segments[s], sign) > infinity:
                new.min = new.max = infinity | (infinity >> 1)  # one NaN for all
            state.samples += 1


# Medians, and massive activations ------------------------------------------------------------------------------------


@njit(nogil=True)
def _value(magnitude: int, site: Any) -> float:
    """The number that a finite magnitude stands for."""
    mantissa, exponent = site.mantissa, magnitude >> site.mantissa
    fraction = magnitude & ((1 << mantissa) - 1)
    if exponent == 0:
        return math.ldexp(float(fraction), 1 - site.bias - mantissa)
    return math.ldexp(float(fraction | (1 << mantissa)), exponent - site.bias - mantissa)


@njit(nogil=True)
def _floor(value: float, site: Any, infinity: int) -> int:
    """The highest finite magnitude that stands for no more than this number, which is positive."""
    fraction, exponent = math.frexp(value)  # value = fraction · 2^exponent, fraction in [0.5, 1)
    exponent += site.bias - 1
    if exponent <= 0:
        return int(math.ldexp(value, site.bias + site.mantissa - 1))
    pattern = (exponent << site.mantissa) + int(math.ldexp(2 * fraction - 1, site.mantissa))
    return min(pattern, infinity - 1)


@njit(nogil=True)
def _up_to(patterns: Any, bound: int) -> int:
    """How many magnitudes are at most this one."""
    kind = patterns.dtype.type
    rest, limit, total = kind(~sign_of(patterns)), kind(bound), np.int64(0)
    for start in range(0, len(patterns), _COUNTABLE):
        block, found = patterns[start : start + _COUNTABLE], kind(0)
        for c in range(len(block)):
            found = kind(found + kind(kind(block[c] & rest) <= limit))
        total += np.int64(found)
    return total


@njit(nogil=True)
def _median(site: Any, i: int, kind: Any, infinity: int) -> int:
    """The median of a row's finite magnitudes, the lower one of two; −1 where there is none. Found once."""
    row, patterns = rows_of(site)[i], row_of(site, i, kind)
    if row.median == UNKNOWN:
        rank = (_up_to(patterns, infinity - 1) - 1) // 2
        low, high = np.int64(0), np.int64(infinity - 1)
        while low < high:
            middle = (low + high) // 2
            if _up_to(patterns, middle) > rank:
                high = middle
            else:
                low = middle + 1
        row.median = low if rank >= 0 else -1
    return np.int64(row.median)


@njit(nogil=True)
def _count_massive(site: Any, batch: Any, kind: Any, sign: int, infinity: int) -> None:
    """Count elements above 100 and above 1,000 medians of their row."""
    rows, splits = rows_of(site), array(batch.split, batch.samples, np.int64)
    hundred = _floor(100.0, site, infinity)
    for i in range(len(rows)):
        if rows[i].segment >= 0 and _magnitude(rows[i], sign) > hundred:
            highest = min(_magnitude(rows[i], sign), infinity - 1)
            site.states[splits[rows[i].segment]].massive += _massive_in(site, i, highest, kind, infinity)


@njit(nogil=True)
def _massive_in(site: Any, i: int, highest: int, kind: Any, infinity: int) -> int:
    """Massive activations of a row whose largest finite magnitude is at most the given one."""
    patterns = row_of(site, i, kind)
    finite = _up_to(patterns, infinity - 1)
    # Above 1,000 medians lies nothing unless half of the row is at most a thousandth of its largest.
    if 2 * _up_to(patterns, _floor(_value(highest, site) / 1000, site, infinity)) < finite or not finite:
        return 0
    bound = max(100.0, 1000 * _value(_median(site, i, kind, infinity), site))
    return finite - _up_to(patterns, _floor(bound, site, infinity))


# Peaks ---------------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _find_peaks(site: Any, batch: Any, segments: Any, kind: Any, sign: int, infinity: int) -> None:
    """Enter the peaks of rows that reach what both splits ask for, and find the medians of those that stayed."""
    rows, splits = rows_of(site), array(batch.split, batch.samples, np.int64)
    floors, entered = np.ones(2, np.int64), np.zeros(2, np.uint8)
    for split in range(2):
        if site.states[split].counts and site.states[split].kept < LIMIT:
            floors[split] = _first_floor(site, site.states[split], infinity)
    marked = -1
    for i in range(len(rows)):
        s = np.int64(rows[i].segment)
        if s < 0:
            continue
        state = site.states[splits[s]]
        if state.kept == LIMIT:
            floors[splits[s]] = array(state.peaks, 1, layout.PEAK)[0].magnitude
        if _magnitude(rows[i], sign) < floors[splits[s]]:
            continue
        broken = array(batch.broken, site.channels if _magnitude(segments[s], sign) >= infinity else 0, np.uint8)
        if len(broken) and marked != s:
            _mark_broken(site, s, broken, kind, infinity)
            marked = s
        _enter_row(site, batch, i, s, floors[splits[s]], broken, kind)
        entered[splits[s]] = 1
    for split in range(2):
        if entered[split]:
            _settle(site, split, kind, infinity)


@njit(nogil=True)
def _first_floor(site: Any, state: Any, infinity: int) -> int:
    """A magnitude that LIMIT elements reach among those that were counted, 1 where there are fewer, or broken ones."""
    counts = array(state.counts, BINS, np.uint32)
    half, shift = BINS // 2, 16 if site.wide else 0
    for magnitude in range(infinity >> shift, half):
        if counts[magnitude] or counts[half + magnitude]:
            return 1  # which channels are broken is not known yet
    reaching = np.int64(0)
    for magnitude in range((infinity >> shift) - 1, 0, -1):
        reaching += np.int64(counts[magnitude]) + np.int64(counts[half + magnitude])
        if reaching >= LIMIT:  # what was rounded may have been half a step less
            return (magnitude << shift) - (1 << shift >> 1)
    return 1


@njit(nogil=True)
def _mark_broken(site: Any, segment: int, broken: Any, kind: Any, infinity: int) -> None:
    """Mark the channels in which a sample holds an infinity or a NaN."""
    broken[:] = 0
    rows = rows_of(site)
    for i in range(len(rows)):
        if rows[i].segment == segment:
            patterns = row_of(site, i, kind)
            rest = kind(~sign_of(patterns))
            for c in range(len(patterns)):
                broken[c] |= np.uint8(np.int64(patterns[c] & rest) >= infinity)


@njit(nogil=True)
def _enter_row(site: Any, batch: Any, i: int, segment: int, floor: int, broken: Any, kind: Any) -> None:
    """Enter a row's elements of at least this magnitude, but for those of broken channels."""
    patterns, state = row_of(site, i, kind), site.states[splits_of(batch)[segment]]
    rest, bound = kind(~sign_of(patterns)), kind(floor)
    heap = array(state.peaks, LIMIT + 1, layout.PEAK)
    token = array(site.tokens + 8 * i, 1, np.int64)[0] if site.tokens else i
    for start in range(0, len(patterns), _BLOCK):
        block, highest = patterns[start : start + _BLOCK], kind(0)
        for c in range(len(block)):
            highest = max(highest, kind(block[c] & rest))
        if highest < bound:
            continue
        for c in range(len(block)):
            magnitude = kind(block[c] & rest)
            if magnitude < bound or (len(broken) and broken[start + c]):
                continue
            new = heap[LIMIT]
            new.magnitude, new.value, new.channel = magnitude, block[c], start + c
            new.sample = array(batch.sample + 8 * segment, 1, np.int64)[0]
            new.position = array(batch.position + 8 * token, 1, np.int64)[0]
            new.token = array(batch.token + 8 * token, 1, np.int64)[0]
            new.median, new.row = 0, i
            state.kept = _enter(heap, state.kept)
            if state.kept == LIMIT:
                bound = kind(heap[0].magnitude)


@njit(nogil=True)
def splits_of(batch: Any) -> Any:
    """The split of every sample of a batch."""
    return array(batch.split, batch.samples, np.int64)


@njit(nogil=True)
def _worse(a: Any, b: Any) -> bool:
    """Whether peak a stands behind peak b: by falling magnitude, then rising sample, position and channel."""
    if a.magnitude != b.magnitude:
        return a.magnitude < b.magnitude
    if a.sample != b.sample:
        return a.sample > b.sample
    if a.position != b.position:
        return a.position > b.position
    return a.channel > b.channel


@njit(nogil=True)
def _enter(heap: Any, kept: int) -> int:
    """Put the peak at heap[LIMIT] among the kept ones, the worst on top, if it belongs there. How many are kept."""
    new, hole = heap[LIMIT], kept
    if kept < LIMIT:
        while hole and _worse(new, heap[(hole - 1) // 2]):
            heap[hole] = heap[(hole - 1) // 2]
            hole = (hole - 1) // 2
        heap[hole] = new
        return kept + 1
    if not _worse(heap[0], new):
        return kept
    hole, child = 0, 1
    while child < kept:
        if child + 1 < kept and _worse(heap[child + 1], heap[child]):
            child += 1
        if not _worse(heap[child], new):
            break
        heap[hole] = heap[child]
        hole, child = child, 2 * child + 1
    heap[hole] = new
    return kept


@njit(nogil=True)
def _settle(site: Any, split: int, kind: Any, infinity: int) -> None:
    """Find the medians of the new peaks that stayed, while their rows are at hand."""
    state = site.states[split]
    heap = array(state.peaks, LIMIT + 1, layout.PEAK)
    for k in range(state.kept):
        if heap[k].row >= 0:
            heap[k].median = _median(site, heap[k].row, kind, infinity)
            heap[k].row = -1
