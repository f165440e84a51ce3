"""Statistics of tensors in main memory, gathered by compiled code where they lie."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats import distribution, extremes, peaks, site
from quantaudit.stats.distribution import BINS, Encoding, decode
from quantaudit.stats.labels import ALL, SPLITS, Chosen, Labels

_PARALLEL = 1 << 15
"""Elements from which on a tensor is shared among threads, and counted by counters that stay in the cache."""
_MOST_THREADS = 8
_FOLD = 1 << 31
"""Elements after which 32-bit counters are emptied into wide ones."""
_CALL = 13
"""Fields of a block that differ from call to call."""
_FORMAT: dict[torch.dtype, tuple[Encoding, int, int, int]] = {
    torch.bfloat16: ("bfloat16", 0, 7, 127),
    torch.float16: ("float16", 0, 10, 15),
    torch.float32: ("bfloat16", 1, 23, 127),
}
"""dtype → how it is counted, whether it is wide, bits of its mantissa, bias of its exponent."""


@cache
def _team() -> Any:
    """What runs a C function on PyTorch's own threads, if it is there: GNU OpenMP's entry, which is a stable interface.

    Threads of another pool would compete with PyTorch's, which wait for work without yielding the processor.
    """
    found = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if "USE_OPENMP=ON" in torch.__config__.show() else None
    if found is not None:
        found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        found.restype = None
    return found


class HostRecorder:
    """What the sites of one run share: compiled code, threads and scratch memory."""

    def __init__(self) -> None:
        from quantaudit.stats import host_kernel  # compiles, or loads what was compiled

        self.kernel = host_kernel
        self.count, self.finish = host_kernel.count_chunks.ctypes, host_kernel.finish.ctypes
        self.count_address = host_kernel.count_chunks.address
        self.parallel = _team()
        self.threads = min(torch.get_num_threads(), _MOST_THREADS) if self.parallel else 1
        self._buffers: dict[str, tuple[int, int, NDArray[Any]]] = {}
        self._labels: Labels | None = None
        self._block = np.zeros(host_kernel.B_COUNT + 1, np.int64)
        self.block = int(self._block.ctypes.data)

    def site(self, dtype: torch.dtype, *, sparse: bool = False) -> HostSite:
        """An empty site of tensors of this dtype. sparse: between tensors, keep only counters that are not zero."""
        return HostSite(self, dtype, sparse=sparse)

    def buffer(self, name: str, size: int, dtype: Any) -> int:
        """Address of scratch memory of at least this many elements, shared by all sites."""
        found = self._buffers.get(name)
        if found is None or found[0] < size:
            made = np.zeros(2 * size, dtype)
            found = self._buffers[name] = len(made), int(made.ctypes.data), made
        return found[1]

    def counters(self, split: int) -> NDArray[np.uint32]:
        """Counters that sparse sites share, all zero between tensors."""
        self.buffer(f"counts {split}", BINS, np.uint32)
        made: NDArray[np.uint32] = self._buffers[f"counts {split}"][2]
        return made

    def use(self, labels: Labels) -> None:
        """Point the batch's block at these labels."""
        if labels is self._labels:
            return
        self._labels = labels
        arrays = (labels.segment, labels.position, labels.token, labels.sample, labels.split)
        self._block[:] = [*(array.ctypes.data for array in arrays), len(labels.sample)]


class HostSite:
    """Running statistics of one site in both splits."""

    def __init__(self, shared: HostRecorder, dtype: torch.dtype, *, sparse: bool) -> None:
        self._shared = shared
        self._sparse = sparse
        self._convert = dtype not in _FORMAT
        self._encoding, wide, mantissa, bias = _FORMAT[torch.float32 if self._convert else dtype]
        self._size = 4 if wide else 2
        kernel = shared.kernel
        self._block = np.zeros(kernel.SIZE, np.int64)
        self._block[[kernel.WIDE, kernel.MANTISSA, kernel.BIAS]] = wide, mantissa, bias
        self._address = int(self._block.ctypes.data)
        self._states: list[_State | None] = [None] * SPLITS

    def add(self, x_NC: Tensor, labels: Labels, chosen: Chosen = ALL) -> None:
        """Add the rows of a tensor that count. x_NC: [rows, channels]. It is not kept."""
        if self._convert:
            x_NC = x_NC.float()
        rows, channels = x_NC.shape
        stride, step = x_NC.stride()
        if step != 1 and channels > 1:
            x_NC, stride = x_NC.contiguous(), channels
        if not rows:
            return
        shared, block = self._shared, self._block
        shared.use(labels)
        tokens = None if chosen.tokens is None else chosen.tokens.contiguous()
        valid = None if chosen.valid is None else chosen.valid.contiguous()
        hot = not self._sparse and rows * channels >= _PARALLEL and len(labels.splits) == 1
        threads = shared.threads if hot else 1
        block[:_CALL] = (
            x_NC.data_ptr(),
            stride * self._size,
            rows,
            channels,
            0 if tokens is None else tokens.data_ptr(),
            0 if valid is None else valid.data_ptr(),
            shared.block,
            threads,
            0,
            shared.buffer("rows", 5 * rows, np.uint32),
            shared.buffer("segments", 4 * len(labels.sample), np.uint32),
            shared.buffer("broken", channels, np.uint8),
            shared.buffer("counts", threads * BINS, np.uint32) if hot else 0,
        )
        for split in labels.splits:
            self._state(split, channels).reserve(len(labels.sample), rows * channels)
        if threads > 1:
            shared.parallel(shared.count_address, self._address, threads, 0)
        else:
            shared.count(self._address)
        shared.finish(self._address)
        if self._sparse:
            for split in labels.splits:
                self._state(split, channels).compact()

    def _state(self, split: int, channels: int) -> _State:
        state = self._states[split]
        if state is None:
            first = self._shared.kernel.SPLIT + split * self._shared.kernel.STATE
            block = self._block[first : first + self._shared.kernel.STATE]
            amax = np.zeros((1 if self._sparse else self._shared.threads, channels), f"uint{8 * self._size}")
            shared_counts = self._shared.counters(split) if self._sparse else None
            state = self._states[split] = _State(self._shared, block, amax, shared_counts)
        return state

    def result(self, split: int) -> site.SiteStatistics | None:
        """What was added of a split; None where nothing was."""
        state = self._states[split]
        return None if state is None else state.result(self._encoding, wide=self._size == 4)


class _State:
    """One split of one site: arrays, and their addresses in the kernel's block.

    amax: uint [threads, channels]. sparse: counters that are lent for the time of one tensor.
    """

    def __init__(
        self,
        shared: HostRecorder,
        block: NDArray[np.int64],
        amax: NDArray[Any],
        sparse: NDArray[np.uint32] | None,
    ) -> None:
        self._kernel, self._block = shared.kernel, block
        self._amax = amax
        self._heap = np.zeros((peaks.KEPT, 8), np.int64)
        self._extremes = np.zeros((0, 4), np.uint32)
        self._counts = _lazy_zeros() if sparse is None else sparse[:BINS]
        self._folded: tuple[NDArray[np.uint16], NDArray[np.int64]] = np.zeros(0, np.uint16), np.zeros(0, np.int64)
        self._pending = 0
        self._reserved = 0
        block[self._kernel.COUNTS] = self._counts.ctypes.data
        block[self._kernel.AMAX] = amax.ctypes.data
        block[self._kernel.PEAKS] = self._heap.ctypes.data

    def reserve(self, samples: int, elements: int) -> None:
        """Before a tensor: make room for so many samples, and for so many elements in the counters."""
        self._reserved += samples
        if self._reserved > len(self._extremes):
            seen = int(self._block[self._kernel.SEEN])
            grown = np.zeros((2 * (seen + samples) + 8, 4), np.uint32)
            grown[:seen] = self._extremes[:seen]
            self._extremes, self._reserved = grown, seen + samples
            self._block[self._kernel.EXTREMES] = grown.ctypes.data
        self._pending += elements
        if self._pending > _FOLD:
            self.compact()
            self._pending = elements

    def compact(self) -> None:
        """Empty the counters into a list of those that are not zero."""
        self._folded = self.counted()
        # Only those: writing zeros where nothing was counted would make the memory there resident.
        self._counts[np.flatnonzero(self._counts)] = 0

    def counted(self) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
        """Patterns that occurred, uint16 [n], ascending, and how often, int64 [n]."""
        hit = np.flatnonzero(self._counts)
        new = self._counts[hit].astype(np.int64)
        patterns, counts = self._folded
        if not len(patterns):
            return hit.astype(np.uint16), new
        kept = np.union1d(patterns, hit)
        total = np.zeros(len(kept), np.int64)
        total[np.searchsorted(kept, patterns)] = counts
        total[np.searchsorted(kept, hit)] += new
        return kept.astype(np.uint16), total

    def result(self, encoding: Encoding, *, wide: bool) -> site.SiteStatistics | None:
        """The statistics; None where no row counted."""
        k, seen = self._kernel, int(self._block[self._kernel.SEEN])
        if not seen:
            return None
        patterns, counts = self.counted()

        def values(raw: NDArray[Any]) -> NDArray[np.float32]:
            return raw.astype(np.uint32).view(np.float32) if wide else decode(encoding, raw.astype(np.uint16))

        rows, p = self._extremes[:seen], self._heap[: int(self._block[k.KEPT])]
        low, high = values(rows[:, 2].copy()), values(rows[:, 3].copy())
        return site.SiteStatistics(
            distribution=distribution.Distribution(encoding=encoding, patterns=patterns, counts=counts),
            extremes=extremes.from_arrays(rows[:, 0].astype(np.int32), rows[:, 1].astype(np.int32), low, high),
            channel_amax=values(self._amax.max(0)),
            peaks=peaks.select(
                value=values(p[:, k.VALUE]),
                sample=p[:, k.SAMPLE].astype(np.int32),
                position=p[:, k.POSITION].astype(np.int32),
                token=p[:, k.TOKEN].astype(np.int32),
                channel=p[:, k.CHANNEL].astype(np.int32),
                median=values(p[:, k.MEDIAN]),
            ),
            massive=int(self._block[k.MASSIVE]),
        )


def _lazy_zeros() -> NDArray[np.uint32]:
    """Counters [65,536] that take up memory only where something is counted: patterns that occur are few.

    A mapping of its own, since the allocator would clear a block that it uses again; huge pages would defeat it too.
    """
    made = mmap.mmap(-1, BINS * 4)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        made.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(made, np.uint32)
