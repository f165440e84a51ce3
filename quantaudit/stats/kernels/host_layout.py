"""What compiled code and Python share about tensors in main memory: records of fixed layout, and pointers into them.

Every field is an int64 unless its dtype says otherwise. Fields that hold an address are of C-contiguous arrays that the
caller keeps alive; their element types and shapes stand next to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

BINS = 1 << 16
LIMIT = 100
"""Peaks kept."""
RANGES = 8
"""Parts of the counters that threads can add to at the same time."""


def _record(*fields: tuple[Any, ...]) -> np.dtype[np.void]:
    return np.dtype(list(fields), align=True)


def _int64s(*names: str) -> list[tuple[str, str]]:
    return [(name, "i8") for name in names]


ROW = _record(("segment", "i4"), ("low", "u4"), ("high", "u4"), ("median", "i4"))
"""Of a tensor's row: its sample in the batch, −1 where it does not count; keys of its extremes; the pattern of its
median magnitude, UNKNOWN until asked for, −1 where nothing is finite.

A key orders floats of either sign: all bits flipped where the sign is set, else only the sign (`key_of`).
"""
UNKNOWN = -2
SEGMENT = _record(("rows", "u4"), ("low", "u4"), ("high", "u4"))
"""Of a sample in a tensor: rows, and keys of its extremes."""
EXTREMES = _record(("sample", "u4"), ("tokens", "u4"), ("min", "u4"), ("max", "u4"))
"""A sample's index, its rows, and the patterns of its extremes."""
PEAK = _record(*_int64s("magnitude", "value", "sample", "position", "channel", "token", "median", "row"))
"""Patterns of |x|, x and the median; row: in the tensor at hand while the median is not known, else −1."""
STATE = _record(*_int64s("counts", "amax", "peaks", "kept", "massive", "extremes", "samples"))
"""One split of a site. counts: uint32 [65,536]; amax: patterns [chunks, channels]; peaks: PEAK [101], a heap of the
`kept` ones and a place to build the next; massive: elements; extremes: EXTREMES, of `samples` so far."""
BATCH = _record(
    *_int64s("segment", "position", "token", "sample", "split", "samples", "rows", "segments", "broken", "counters"),
    ("locks", "i8", (RANGES,)),
)
"""segment, position, token: int64 [tokens], as of `Labels`; sample, split: int64 [samples]. Scratch memory of all
sites: rows: ROW; segments: SEGMENT; broken: uint8 [channels]; counters: uint32 [chunks, 65,536], zero between calls;
locks: 1 while a thread adds to this range of a site's counters."""
CALL = (
    "x",
    "stride",
    "tensor_rows",
    "channels",
    "tokens",
    "valid",
    "chunks",
    "hot",
    "next_chunk",
    "finished",
)
"""Of the tensor at hand: address, bytes from row to row, rows, channels; int64 [rows] or 0: which token of the batch a
row is; bool [rows] or 0: which rows count; chunks; whether they have counters of their own, which stay in the cache,
for tensors of one split (else there is one chunk); the next chunk, and how many are finished."""
SITE = _record(*_int64s(*CALL, "batch", "wide", "mantissa", "bias"), ("states", STATE, (2,)))
"""A site: the tensor at hand; then what stays: address of BATCH, 1 for float32, bits of the mantissa, bias of the
exponent, both splits (whose `counts` is 0 where nothing was seen)."""
NEXT_CHUNK, FINISHED = (SITE.fields[name][1] for name in ("next_chunk", "finished"))  # type: ignore[index]
LOCKS = BATCH.fields["locks"][1]  # type: ignore[index]


@intrinsic
def _pointer(_typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


def _atomic(operation: str, ordering: str) -> Any:
    @intrinsic
    def change(_typing: Any, address: Any, value: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            place = builder.inttoptr(args[0], cgutils.intp_t.as_pointer())
            return builder.atomic_rmw(operation, place, args[1], ordering)

        return types.int64(types.int64, types.int64), generate

    return change


add_to, exchange = _atomic("add", "acq_rel"), _atomic("xchg", "acq_rel")
"""(address, value) → what the int64 there held before it was added to, or replaced, whichever threads do so at once."""


@njit(nogil=True)
def array(address: int, size: int, dtype: Any) -> Any:
    """The array [size] at an address."""
    return carray(_pointer(address), size, dtype)


@njit(nogil=True)
def site_at(address: int) -> Any:
    """The SITE at an address."""
    return carray(_pointer(address), 1, SITE)[0]


@njit(nogil=True)
def batch_of(site: Any) -> Any:
    """The batch whose tensor is at hand."""
    return carray(_pointer(site.batch), 1, BATCH)[0]


@njit(nogil=True)
def rows_of(site: Any) -> Any:
    """ROW [rows] of the tensor at hand."""
    return carray(_pointer(batch_of(site).rows), site.tensor_rows, ROW)


@njit(nogil=True)
def row_of(site: Any, i: int, kind: Any) -> Any:
    """Patterns [channels] of a row. kind: np.uint16 or np.uint32."""
    return carray(_pointer(site.x + i * site.stride), site.channels, kind)


@njit(nogil=True)
def sign_of(patterns: Any) -> Any:
    """The bit of the sign, in the patterns' own type."""
    return patterns.dtype.type(1 << (8 * patterns.itemsize - 1))
