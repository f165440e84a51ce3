"""The C function that gathers statistics of tensors in main memory: elements are read where they lie, without Python's
lock.

Floats are handled as bit patterns: with the sign masked off they are ordered like magnitudes, so that maxima and
comparisons are those of integers, which vectorize, and NaN and infinity are simply the largest. `host_layout` says what
is shared with Python, `host_count` is what all threads do, `host_peaks` what the last of them does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import cfunc, types

from quantaudit.stats.kernels.host_count import ALL, count_chunk
from quantaudit.stats.kernels.host_layout import FINISHED, NEXT_CHUNK, add_to, site_at
from quantaudit.stats.kernels.host_peaks import finish_tensor

_SOURCES = ("host_layout.py", "host_count.py", "host_peaks.py")


def _digest() -> int:
    """Of the code that is compiled: numba compares only the file that a function itself stands in."""
    texts = b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)
    return int.from_bytes(hashlib.sha256(texts).digest()[:7], "big")


def compile_record(parts: int = ALL) -> Any:
    """A C function of the address of a SITE, whose tensor it adds to it. Any number of threads may call it at once:
    each works on chunks until none is left, and who finishes the last one ends the tensor.

    Compiled once a machine: kept where Python keeps bytecode, or where it may write. parts: the statistics.
    """
    version = _digest()

    def record(address: int) -> None:
        _key = version  # a part of what compiled code is found by
        site = site_at(address)
        while True:
            chunk = add_to(address + NEXT_CHUNK, 1)
            if chunk >= site.chunks:
                return
            count_chunk(site, chunk, parts)
            if add_to(address + FINISHED, 1) + 1 == site.chunks:
                if site.wide:
                    finish_tensor(site, np.uint32, parts)
                else:
                    finish_tensor(site, np.uint16, parts)

    signature = types.void(types.int64)
    try:
        return cfunc(signature, cache=True)(record)
    except RuntimeError:  # no folder to keep it in
        return cfunc(signature)(record)
