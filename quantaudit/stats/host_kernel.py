"""Compiled counting of tensors in main memory: every element is read once, where it lies, without Python's lock.

Floats are handled as bit patterns: with the sign masked off they are ordered like magnitudes, so that maxima and
comparisons are those of integers, which vectorize, and NaN and infinity are simply the largest. `record` is given the
address of a block of int64, whose fields are numbered below; addresses in it are of C-contiguous arrays that the caller
keeps alive. It works in two phases: chunks of rows, by whichever threads call in (each chunk has counters of its own),
then a single thread adds up what they counted, and looks again at the few rows that can hold a peak or a massive
activation.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

# What differs from call to call.
X, STRIDE, ROWS, CHANNELS, TOKENS, VALID, BATCH, CHUNKS, TICKET, SCRATCH, SEGMENTS, BROKEN, HOT = range(13)
"""Address of the tensor, bytes from row to row, rows, channels; address of int64 [rows] or 0 (which token of the batch
a row is), of bool [rows] or 0 (rows that count), of the batch's block; chunks, the next chunk; addresses of uint32
[rows, 5], of uint32 [samples of the batch, 4], of uint8 [channels], and of uint32 [chunks, 65,536] or 0: counters that
all sites share, one set for each chunk, zero between calls. They stay in the cache, and serve batches of one split
only; without them there is one chunk."""
# What is the same for a site.
WIDE, MANTISSA, BIAS, SPLIT = range(13, 17)
"""1 for float32, bits of the mantissa, bias of the exponent, and where the states of both splits begin."""
COUNTS, AMAX, PEAKS, KEPT, MASSIVE, EXTREMES, SEEN = range(7)
"""Of a split's state: addresses of uint32 [65,536], uint32 or uint16 [chunks, channels], int64 [100, 8]; peaks
kept, massive activations, address of uint32 [samples, 4], samples seen."""
STATE = 8
SIZE = SPLIT + 2 * STATE
# The batch's block.
B_SEGMENT, B_POSITION, B_TOKEN, B_SAMPLE, B_SPLIT, B_COUNT = range(6)
"""Addresses of int64 [tokens] (which sample of the batch, −1 at padding; position in it; id), int64 [samples] (the
sample's index; its split, 0 or 1), and the number of samples in the batch."""

# Columns of a row's scratch, and of a segment's.
_SEG, _MIN, _MAX, _SIGNED, _MEDIAN = range(5)
_NONE = np.uint32(0xFFFFFFFF)
# Columns of a peak.
MAGNITUDE, VALUE, SAMPLE, POSITION, CHANNEL, TOKEN, MEDIAN, ROW = range(8)
LIMIT = 100
"""Peaks kept."""
BINS = 1 << 16
_LINE = 128
"""Counters that are added together, or skipped."""


def _pointer(bits: int) -> Any:
    @intrinsic
    def pointer(_typing: Any, address: Any) -> Any:
        kind = types.CPointer({8: types.uint8, 16: types.uint16, 32: types.uint32, 64: types.int64}[bits])

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), generate

    return pointer


_at8, _at16, _at32, _at64 = (_pointer(bits) for bits in (8, 16, 32, 64))


@intrinsic
def _next(_typing: Any, pointer: Any) -> Any:
    """What an int64 holds, which is one more from now on, whoever else asks at the same time."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        one = cgutils.intp_t(1)
        return builder.atomic_rmw("add", args[0], one, "monotonic")

    return types.int64(pointer), generate


# Phase 1: chunks of rows ---------------------------------------------------------------------------------------------


@njit(nogil=True)
def _segment_of(p: Any, row: int) -> int:
    """Which sample of the batch a row belongs to, −1 for none."""
    if p[VALID] and not carray(_at8(p[VALID] + row), 1)[0]:
        return -1
    token = carray(_at64(p[TOKENS]), p[ROWS])[row] if p[TOKENS] else row
    batch = carray(_at64(p[BATCH]), B_COUNT + 1)
    return carray(_at64(batch[B_SEGMENT] + 8 * token), 1)[0]


@njit(nogil=True)
def _scan(patterns: Any, amax: Any, sign: Any) -> Any:
    """Raise amax, [channels], by a row's magnitudes. Returns its lowest and highest pattern and highest signed one."""
    # Loops of one kind each, in the patterns' own width: so they vectorize. Flipped, unsigned order is signed order.
    of_size, rest = patterns.dtype.type, ~sign
    low, high, flipped = patterns[0], patterns[0], of_size(patterns[0] ^ sign)
    for c in range(len(patterns)):
        amax[c] = max(amax[c], of_size(patterns[c] & rest))
    for c in range(len(patterns)):
        low, high = min(low, patterns[c]), max(high, patterns[c])
    for c in range(len(patterns)):
        flipped = max(flipped, of_size(patterns[c] ^ sign))
    return low, high, of_size(flipped ^ sign)


@njit(nogil=True)
def _count(counts: Any, patterns: Any) -> None:
    for c in range(len(patterns)):
        counts[patterns[c]] += np.uint32(1)


@njit(nogil=True)
def _pour(hot: Any, counts: Any) -> None:
    """Add what was counted to a site's own counters, and clear it: only where anything was."""
    for start in range(0, BINS, _LINE):
        some = np.uint32(0)
        for k in range(start, start + _LINE):
            some |= hot[k]
        if some:
            for k in range(start, start + _LINE):
                counts[k] += hot[k]
                hot[k] = 0


@njit(nogil=True)
def _round(bits: Any, rounded: Any) -> None:
    """float32 to bfloat16, both as patterns: nearest, ties to even; every NaN to the one that PyTorch makes of it."""
    for c in range(len(bits)):
        value = bits[c]
        even = np.uint32((value + np.uint32(0x7FFF) + ((value >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
        broken = (value & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        rounded[c] = np.uint16(0xFFFF) if broken else np.uint16(even)


@njit(nogil=True)
def _chunk(p: Any, chunk: int) -> None:
    rows, channels = p[ROWS], p[CHANNELS]
    batch = carray(_at64(p[BATCH]), B_COUNT + 1)
    splits = carray(_at64(batch[B_SPLIT]), batch[B_COUNT])
    scratch = carray(_at32(p[SCRATCH]), (rows, 5))
    rounded = np.empty(channels if p[WIDE] else 0, np.uint16)
    hot = carray(_at32(p[HOT] + 4 * BINS * chunk), BINS)
    for i in range(rows * chunk // p[CHUNKS], rows * (chunk + 1) // p[CHUNKS]):
        segment = _segment_of(p, i)
        scratch[i, _SEG] = _NONE if segment < 0 else np.uint32(segment)
        if segment < 0:
            continue
        state = SPLIT + STATE * splits[segment]
        counts = hot if p[HOT] else carray(_at32(p[state + COUNTS]), BINS)
        address = p[X] + i * p[STRIDE]
        if p[WIDE]:
            bits = carray(_at32(address), channels)
            _round(bits, rounded)
            _count(counts, rounded)
            amax = carray(_at32(p[state + AMAX] + 4 * channels * chunk), channels)
            low, high, signed = _scan(bits, amax, np.uint32(0x80000000))
            scratch[i, _MIN], scratch[i, _MAX], scratch[i, _SIGNED] = low, high, signed
        else:
            short = carray(_at16(address), channels)
            _count(counts, short)
            amax16 = carray(_at16(p[state + AMAX] + 2 * channels * chunk), channels)
            low16, high16, signed16 = _scan(short, amax16, np.uint16(0x8000))
            scratch[i, _MIN], scratch[i, _MAX], scratch[i, _SIGNED] = low16, high16, signed16


# Phase 2: samples, and rows worth a second look ----------------------------------------------------------------------


@njit(nogil=True)
def _magnitude(low: Any, high: Any, signed: Any, sign: Any) -> Any:
    """Largest magnitude of what has these extremes: the highest negative pattern, or the highest positive one."""
    negative = np.int64(high & ~sign) if high & sign else np.int64(0)
    positive = np.int64(0) if signed & sign else np.int64(signed)
    return max(negative, positive)


@njit(nogil=True)
def _summarize(p: Any, segments: Any, sign: Any, infinity: Any) -> None:
    """Extremes of each sample, from its rows', appended to its split's list."""
    scratch = carray(_at32(p[SCRATCH]), (p[ROWS], 5))
    batch = carray(_at64(p[BATCH]), B_COUNT + 1)
    samples = carray(_at64(batch[B_SAMPLE]), batch[B_COUNT])
    splits = carray(_at64(batch[B_SPLIT]), batch[B_COUNT])
    segments[:, 0] = 0
    for i in range(p[ROWS]):
        s = scratch[i, _SEG]
        scratch[i, _MEDIAN] = _NONE
        if s == _NONE:
            continue
        if not segments[s, 0]:
            segments[s, 1], segments[s, 2], segments[s, 3] = scratch[i, 1], scratch[i, 2], scratch[i, 3]
        segments[s, 0] += np.uint32(1)
        segments[s, _MIN] = min(segments[s, _MIN], scratch[i, _MIN])
        segments[s, _MAX] = max(segments[s, _MAX], scratch[i, _MAX])
        segments[s, _SIGNED] = max(segments[s, _SIGNED] ^ sign, scratch[i, _SIGNED] ^ sign) ^ sign
    for s in range(len(segments)):
        if not segments[s, 0]:
            continue
        low, high, signed = segments[s, _MIN], segments[s, _MAX], segments[s, _SIGNED]
        smallest = np.uint32(high if high & sign else low)
        largest = np.uint32(low if signed & sign else signed)
        if np.int64(max(smallest & ~sign, largest & ~sign)) > infinity:
            smallest = largest = np.uint32(infinity | (infinity >> 1))
        state = SPLIT + STATE * splits[s]
        extremes = carray(_at32(p[state + EXTREMES] + 16 * p[state + SEEN]), 4)
        extremes[0], extremes[1], extremes[2], extremes[3] = samples[s], segments[s, 0], smallest, largest
        p[state + SEEN] += 1


@njit(nogil=True)
def _value(pattern: int, mantissa: int, bias: int) -> float:
    """The finite magnitude that a pattern without sign stands for."""
    exponent, fraction = pattern >> mantissa, pattern & ((1 << mantissa) - 1)
    if exponent == 0:
        return math.ldexp(float(fraction), 1 - bias - mantissa)
    return math.ldexp(float(fraction | (1 << mantissa)), exponent - bias - mantissa)


@njit(nogil=True)
def _floor_pattern(value: float, mantissa: int, bias: int, infinity: int) -> int:
    """The highest finite pattern that stands for no more than this value, which is positive."""
    fraction, exponent = math.frexp(value)  # value = fraction · 2^exponent, fraction in [0.5, 1)
    exponent += bias - 1
    if exponent <= 0:
        return int(math.ldexp(value, bias + mantissa - 1))
    pattern = (exponent << mantissa) + int(math.ldexp(2 * fraction - 1, mantissa))
    return min(pattern, infinity - 1)


@njit(nogil=True)
def _up_to(patterns: Any, bound: Any, sign: Any) -> int:
    """How many magnitudes are at most this one."""
    found = np.uint32(0)
    for c in range(len(patterns)):
        found += np.uint32((patterns[c] & ~sign) <= bound)
    return int(found)


@njit(nogil=True)
def _median(patterns: Any, infinity: Any, sign: Any) -> Any:
    """Pattern of the median of the finite magnitudes, the lower one of two; 2^32 − 1 where there is none."""
    finite = _up_to(patterns, patterns.dtype.type(infinity - 1), sign)
    if finite == 0:
        return _NONE
    rank = (finite - 1) // 2
    low, high = 0, infinity - 1
    while low < high:
        middle = (low + high) // 2
        if _up_to(patterns, patterns.dtype.type(middle), sign) > rank:
            high = middle
        else:
            low = middle + 1
    return np.uint32(low)


@njit(nogil=True)
def _worse(a: Any, b: Any) -> bool:
    """Whether peak a stands behind peak b: by falling magnitude, then rising sample, position and channel."""
    if a[MAGNITUDE] != b[MAGNITUDE]:
        return a[MAGNITUDE] < b[MAGNITUDE]
    for key in range(SAMPLE, CHANNEL + 1):
        if a[key] != b[key]:
            return a[key] > b[key]
    return False


@njit(nogil=True)
def _swap(heap: Any, a: int, b: int) -> None:
    for k in range(8):
        heap[a, k], heap[b, k] = heap[b, k], heap[a, k]


@njit(nogil=True)
def _enter(heap: Any, kept: int, new: Any) -> int:
    """Put a peak among the kept ones, a heap whose worst is on top, if it belongs there; returns how many are kept."""
    if kept < LIMIT:
        heap[kept] = new
        child = kept
        while child and _worse(heap[child], heap[(child - 1) // 2]):
            _swap(heap, child, (child - 1) // 2)
            child = (child - 1) // 2
        return kept + 1
    if not _worse(heap[0], new):
        return kept
    heap[0] = new
    parent = 0
    while True:
        worst = parent
        for child in (2 * parent + 1, 2 * parent + 2):
            if child < kept and _worse(heap[child], heap[worst]):
                worst = child
        if worst == parent:
            return kept
        _swap(heap, parent, worst)
        parent = worst


@njit(nogil=True)
def _first_floor(p: Any, split: int, splits: Any, sign: Any, infinity: Any) -> Any:
    """A magnitude that LIMIT peaks reach: the LIMIT-th highest row maximum, 0 where there are fewer sound rows."""
    scratch = carray(_at32(p[SCRATCH]), (p[ROWS], 5))
    maxima, n = np.empty(p[ROWS], np.int64), 0
    for i in range(p[ROWS]):
        if scratch[i, _SEG] != _NONE and splits[scratch[i, _SEG]] == split:
            maxima[n] = _magnitude(scratch[i, _MIN], scratch[i, _MAX], scratch[i, _SIGNED], sign)
            if maxima[n] >= infinity:
                return np.int64(0)  # which of its channels are broken is not known yet
            n += 1
    low, high = np.int64(0), infinity if n >= LIMIT else np.int64(1)
    while high - low > 1:  # at least LIMIT of the maxima reach low, fewer reach high
        middle = (low + high) // 2
        reaching = 0
        for k in range(n):
            reaching += maxima[k] >= middle
        low, high = (middle, high) if reaching >= LIMIT else (low, middle)
    return low


def _make_look(at: Any, size: int) -> Any:
    """The second look at rows of patterns of one size."""
    kind = np.uint16 if size == 2 else np.uint32
    SIGN = kind(1 << (8 * size - 1))

    @njit(nogil=True)
    def row_of(p: Any, i: int) -> Any:
        return carray(at(p[X] + i * p[STRIDE]), p[CHANNELS])

    @njit(nogil=True)
    def median_of(p: Any, scratch: Any, i: int, infinity: Any) -> Any:
        if scratch[i, _MEDIAN] == _NONE:
            scratch[i, _MEDIAN] = _median(row_of(p, i), infinity, SIGN)
        return scratch[i, _MEDIAN]

    @njit(nogil=True)
    def massive_in(p: Any, scratch: Any, i: int, magnitude: Any, infinity: Any) -> int:
        """Elements of a row above 100 and above 1,000 medians of their row."""
        row, mantissa, bias = row_of(p, i), p[MANTISSA], p[BIAS]
        finite = _up_to(row, kind(infinity - 1), SIGN)
        if finite == 0:
            return 0
        reached = _value(magnitude if magnitude < infinity else infinity - 1, mantissa, bias)
        # Above 1,000 medians lies nothing unless half of the row is at most a thousandth of its largest.
        small = _floor_pattern(reached / 1000, mantissa, bias, infinity)
        if 2 * _up_to(row, kind(small), SIGN) < finite:
            return 0
        bound = 1000 * _value(np.int64(median_of(p, scratch, i, infinity)), mantissa, bias)
        floor = _floor_pattern(max(100.0, bound), mantissa, bias, infinity)
        return finite - _up_to(row, kind(floor), SIGN)

    @njit(nogil=True)
    def mark_broken(p: Any, scratch: Any, segment: Any, broken: Any, infinity: Any) -> None:
        broken[:] = 0
        for i in range(p[ROWS]):
            if scratch[i, _SEG] == segment:
                row = row_of(p, i)
                for c in range(len(row)):
                    if np.int64(row[c] & ~SIGN) >= infinity:
                        broken[c] = 1

    @njit(nogil=True)
    def enter_row(p: Any, i: int, sample: int, state: int, floor: Any, broken: Any, check: bool) -> None:
        """Enter the peaks of a row. check: whether channels may be broken."""
        row = row_of(p, i)
        batch = carray(_at64(p[BATCH]), B_COUNT + 1)
        token = carray(_at64(p[TOKENS]), p[ROWS])[i] if p[TOKENS] else i
        heap = carray(_at64(p[state + PEAKS]), (LIMIT, 8))
        new = np.empty(8, np.int64)
        for c in range(len(row)):
            magnitude = np.int64(row[c] & ~SIGN)
            if magnitude < floor or magnitude == 0 or (check and broken[c]):
                continue
            new[MAGNITUDE], new[VALUE], new[SAMPLE], new[CHANNEL] = magnitude, row[c], sample, c
            new[POSITION] = carray(_at64(batch[B_POSITION] + 8 * token), 1)[0]
            new[TOKEN] = carray(_at64(batch[B_TOKEN] + 8 * token), 1)[0]
            new[MEDIAN], new[ROW] = 0, i
            p[state + KEPT] = _enter(heap, p[state + KEPT], new)

    @njit(nogil=True)
    def settle(p: Any, scratch: Any, state: int, infinity: Any) -> None:
        """Medians of the new peaks that stayed, while their rows are at hand."""
        heap = carray(_at64(p[state + PEAKS]), (LIMIT, 8))
        for k in range(p[state + KEPT]):
            if heap[k, ROW] >= 0:
                heap[k, MEDIAN] = median_of(p, scratch, heap[k, ROW], infinity)
                heap[k, ROW] = -1

    @njit(nogil=True)
    def look(p: Any) -> None:
        infinity = ((1 << (8 * size - 1)) - 1) >> p[MANTISSA] << p[MANTISSA]
        sign = np.uint32(SIGN)
        batch = carray(_at64(p[BATCH]), B_COUNT + 1)
        count = batch[B_COUNT]
        samples, splits = carray(_at64(batch[B_SAMPLE]), count), carray(_at64(batch[B_SPLIT]), count)
        segments = carray(_at32(p[SEGMENTS]), (count, 4))
        _summarize(p, segments, sign, infinity)

        scratch = carray(_at32(p[SCRATCH]), (p[ROWS], 5))
        broken = carray(_at8(p[BROKEN]), p[CHANNELS])
        hundred = _floor_pattern(100.0, p[MANTISSA], p[BIAS], infinity)
        first = np.zeros(2, np.int64)
        for split in range(2):
            if p[SPLIT + STATE * split + COUNTS] and p[SPLIT + STATE * split + KEPT] < LIMIT:
                first[split] = _first_floor(p, split, splits, sign, infinity)
        entered = np.zeros(2, np.uint8)
        marked = _NONE
        for i in range(p[ROWS]):
            s = scratch[i, _SEG]
            if s == _NONE:
                continue
            magnitude = _magnitude(scratch[i, _MIN], scratch[i, _MAX], scratch[i, _SIGNED], sign)
            state = SPLIT + STATE * splits[s]
            if magnitude > hundred:
                p[state + MASSIVE] += massive_in(p, scratch, i, magnitude, infinity)
            floor = first[splits[s]]
            if p[state + KEPT] == LIMIT:
                floor = max(floor, carray(_at64(p[state + PEAKS]), 1)[0])
            if magnitude < floor or magnitude == 0:
                continue
            whole = _magnitude(segments[s, _MIN], segments[s, _MAX], segments[s, _SIGNED], sign)
            if whole >= infinity and marked != s:
                mark_broken(p, scratch, s, broken, infinity)
                marked = s
            enter_row(p, i, samples[s], state, floor, broken, whole >= infinity)
            entered[splits[s]] = 1
        for split in range(2):
            if entered[split]:
                settle(p, scratch, SPLIT + STATE * split, infinity)

    return look


_look16, _look32 = _make_look(_at16, 2), _make_look(_at32, 4)


# What is called from Python ------------------------------------------------------------------------------------------


def _entry(function: Any) -> Any:
    """A C function of one address. Compiled once a machine: kept where Python keeps bytecode, or where it may write."""
    signature = types.void(types.int64)
    try:
        return cfunc(signature, cache=True)(function)
    except RuntimeError:  # no folder to keep it in
        return cfunc(signature)(function)


def _count_chunks(address: int) -> None:
    """Work on chunks until none is left; any number of threads may."""
    p = carray(_at64(address), SIZE)
    while True:
        chunk = _next(_at64(address + 8 * TICKET))
        if chunk >= p[CHUNKS]:
            return
        _chunk(p, chunk)


def _finish(address: int) -> None:
    """After all chunks: by one thread."""
    p = carray(_at64(address), SIZE)
    if p[HOT]:
        batch = carray(_at64(p[BATCH]), B_COUNT + 1)
        split = carray(_at64(batch[B_SPLIT]), batch[B_COUNT])[0]
        counts = carray(_at32(p[SPLIT + STATE * split + COUNTS]), BINS)
        for chunk in range(p[CHUNKS]):
            _pour(carray(_at32(p[HOT] + 4 * BINS * chunk), BINS), counts)
    if p[WIDE]:
        _look32(p)
    else:
        _look16(p)


count_chunks, finish = _entry(_count_chunks), _entry(_finish)
