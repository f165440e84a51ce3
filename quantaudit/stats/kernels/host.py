"""Statistics of tensors in main memory, gathered by compiled code where they lie."""

from __future__ import annotations

import ctypes
import mmap
import struct
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats import distribution, extremes, peaks, site
from quantaudit.stats.distribution import BINS, Encoding, decode
from quantaudit.stats.kernels.ahead import wait_for_compiler
from quantaudit.stats.labels import ALL, SPLITS, Chosen, Labels

_PARALLEL = 1 << 15
"""Elements from which on a tensor is shared among threads, and counted by counters that stay in the cache."""
_MOST_THREADS = 8
_FOLD = 1 << 31
"""Elements after which 32-bit counters are emptied into wide ones."""
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


@cache
def _compiled() -> Any:
    wait_for_compiler()
    from quantaudit.stats.kernels.host_kernel import compile_record  # compiles, or loads what was compiled

    return compile_record()


class HostRecorder:
    """What the sites of one run share: compiled code, threads and scratch memory.

    compiled: another C function than that which gathers everything.
    """

    def __init__(self, compiled: Any = None) -> None:
        from quantaudit.stats.kernels import host_layout

        self.layout = host_layout
        compiled = compiled or _compiled()
        self.record, self.record_address = compiled.ctypes, compiled.address
        self.parallel = _team()
        self.threads = min(torch.get_num_threads(), _MOST_THREADS) if self.parallel else 1
        self.batch = np.zeros(1, host_layout.BATCH)
        self._scratch = {name: np.zeros(0, host_layout.ROW) for name in ("rows", "segments", "broken", "counters")}
        self._sparse_counts: dict[int, NDArray[np.uint32]] = {}
        self._labels: Labels | None = None

    def site(self, dtype: torch.dtype, *, sparse: bool = False) -> HostSite:
        """An empty site of tensors of this dtype. sparse: between tensors, keep only counters that are not zero."""
        return HostSite(self, dtype, sparse=sparse)

    def sparse_counts(self, split: int) -> NDArray[np.uint32]:
        """Counters that sparse sites share, all zero between tensors."""
        return self._sparse_counts.setdefault(split, np.zeros(BINS, np.uint32))

    def use(self, labels: Labels) -> None:
        """Point the batch's record at these labels, and make room for its samples."""
        if labels is self._labels:
            return
        self._labels = labels
        for name in ("segment", "position", "token", "sample", "split"):
            self.batch[name] = getattr(labels, name).ctypes.data
        self.batch["samples"] = len(labels.sample)
        self._reserve("segments", len(labels.sample), self.layout.SEGMENT)

    def reserve(self, rows: int, channels: int, chunks: int) -> None:
        """Scratch memory for a tensor. chunks: those with counters of their own."""
        scratch = self._scratch
        if rows > len(scratch["rows"]):
            self._reserve("rows", rows, self.layout.ROW)
        if channels > len(scratch["broken"]):
            self._reserve("broken", channels, np.uint8)
        if chunks * BINS > len(scratch["counters"]):
            self._reserve("counters", chunks * BINS, np.uint32)

    def _reserve(self, name: str, size: int, dtype: Any) -> None:
        if size > len(self._scratch[name]):
            self._scratch[name] = np.zeros(size if name == "counters" else 2 * size, dtype)
            self.batch[name] = self._scratch[name].ctypes.data


class HostSite:
    """Running statistics of one site in both splits."""

    def __init__(self, shared: HostRecorder, dtype: torch.dtype, *, sparse: bool) -> None:
        self._shared = shared
        self._sparse = sparse
        self._convert = dtype not in _FORMAT
        self._encoding, wide, mantissa, bias = _FORMAT[torch.float32 if self._convert else dtype]
        self._size = 4 if wide else 2
        self._record = np.zeros(1, shared.layout.SITE)
        for name, value in (("wide", wide), ("mantissa", mantissa), ("bias", bias)):
            self._record[name] = value
        self._record["batch"] = shared.batch.ctypes.data
        self._address = int(self._record.ctypes.data)
        self._set_call = struct.Struct(f"={len(shared.layout.CALL)}q").pack_into
        self._bytes: Any = self._record.view(np.uint8)
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
        shared, splits, elements = self._shared, labels.splits, rows * channels
        shared.use(labels)
        hot = elements >= _PARALLEL and len(splits) == 1 and not self._sparse
        threads = shared.threads if hot else 1
        shared.reserve(rows, channels, threads if hot else 0)
        tokens = valid = None
        if chosen is not ALL:
            tokens = None if chosen.tokens is None else chosen.tokens.contiguous()
            valid = None if chosen.valid is None else chosen.valid.contiguous()
        for split in splits:
            (self._states[split] or self._start(split, channels)).reserve(len(labels.sample), elements)
        self._set_call(
            self._bytes,
            0,
            x_NC.data_ptr(),
            stride * self._size,
            rows,
            channels,
            0 if tokens is None else tokens.data_ptr(),
            0 if valid is None else valid.data_ptr(),
            threads,
            hot,
            0,
            0,
        )
        if threads > 1:
            shared.parallel(shared.record_address, self._address, threads, 0)
        else:
            shared.record(self._address)
        if self._sparse:
            for split in splits:
                self._states[split].compact()  # type: ignore[union-attr]

    def _start(self, split: int, channels: int) -> _State:
        shared = self._shared
        amax = np.zeros((1 if self._sparse else shared.threads, channels), f"uint{8 * self._size}")
        counts = shared.sparse_counts(split) if self._sparse else None
        state = self._states[split] = _State(shared.layout, self._record["states"][0, split : split + 1], amax, counts)
        return state

    def result(self, split: int) -> site.SiteStatistics | None:
        """What was added of a split; None where nothing was."""
        state = self._states[split]
        return None if state is None else state.result(self._encoding, wide=self._size == 4)


class _State:
    """One split of one site: arrays, and their addresses in the record [1] that compiled code is given.

    amax: uint [threads, channels]. sparse: counters that are lent for the time of one tensor.
    """

    def __init__(
        self, layout: Any, record: NDArray[Any], amax: NDArray[Any], sparse: NDArray[np.uint32] | None
    ) -> None:
        self._record, self._amax = record, amax
        self._heap = np.zeros(peaks.KEPT + 1, layout.PEAK)
        self._extremes = np.zeros(0, layout.EXTREMES)
        self._counts = _lazy_zeros() if sparse is None else sparse
        self._folded: tuple[NDArray[np.uint16], NDArray[np.int64]] = np.zeros(0, np.uint16), np.zeros(0, np.int64)
        self._pending = 0
        self._reserved = 0
        for name, array in (("counts", self._counts), ("amax", amax), ("peaks", self._heap)):
            record[name] = array.ctypes.data

    def reserve(self, samples: int, elements: int) -> None:
        """Before a tensor: make room for so many samples, and for so many elements in the counters."""
        self._reserved += samples
        if self._reserved > len(self._extremes):
            seen = int(self._record["samples"][0])
            grown = np.zeros(2 * (seen + samples) + 8, self._extremes.dtype)
            grown[:seen] = self._extremes[:seen]
            self._extremes, self._reserved = grown, seen + samples
            self._record["extremes"] = grown.ctypes.data
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
        seen, kept, massive = (int(self._record[name][0]) for name in ("samples", "kept", "massive"))
        if not seen:
            return None
        patterns, counts = self.counted()

        def values(raw: NDArray[Any]) -> NDArray[np.float32]:
            return raw.astype(np.uint32).view(np.float32) if wide else decode(encoding, raw.astype(np.uint16))

        rows, p = self._extremes[:seen], self._heap[:kept]
        return site.SiteStatistics(
            distribution=distribution.Distribution(encoding=encoding, patterns=patterns, counts=counts),
            extremes=extremes.from_arrays(
                rows["sample"].astype(np.int32),
                rows["tokens"].astype(np.int32),
                values(rows["min"]),
                values(rows["max"]),
            ),
            channel_amax=values(self._amax.max(0)),
            peaks=peaks.select(
                value=values(p["value"]),
                sample=p["sample"].astype(np.int32),
                position=p["position"].astype(np.int32),
                token=p["token"].astype(np.int32),
                channel=p["channel"].astype(np.int32),
                median=values(p["median"]),
            ),
            massive=massive,
        )


def _lazy_zeros() -> NDArray[np.uint32]:
    """Counters [65,536] that take up memory only where something is counted: patterns that occur are few.

    A mapping of its own, since the allocator would clear a block that it uses again; huge pages would defeat it too.
    """
    made = mmap.mmap(-1, BINS * 4)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        made.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(made, np.uint32)
