"""The plain path: one tensor at a time in PyTorch's and NumPy's words. Both kernels of the package must equal it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats import distribution, peaks, site
from quantaudit.stats.distribution import BINS, MASSIVE_FLOOR, MASSIVE_RATIO, Encoding
from tests.rows import from_rows


def encoding_of(dtype: torch.dtype) -> Encoding:
    """Which 16-bit patterns stand for a tensor of this dtype."""
    return "float16" if dtype == torch.float16 else "bfloat16"


class PatternCounter:
    """Counts bit patterns through one reused buffer: a fresh one for every tensor would cost more than counting."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Occurrences of each 16-bit pattern of x: int64 [65,536], indexed by the pattern read as uint16."""
        if x.dtype not in (torch.bfloat16, torch.float16):
            x = x.to(torch.bfloat16)
        if self._buffer is None or self._buffer.numel() < x.numel() or self._buffer.device != x.device:
            self._buffer = torch.empty(x.numel(), dtype=torch.int32, device=x.device)
        patterns = self._buffer[: x.numel()].view(x.shape)
        patterns.copy_(x.view(torch.uint16))
        return torch.bincount(patterns.view(-1), minlength=BINS)


class Accumulator:
    """Running statistics of one site in one split. Counts live on the tensor's device, the rest on the host.

    sparse: keep only the bins that were hit, on the host. Slower, but there may be thousands (experts).
    """

    def __init__(self, count: PatternCounter, *, sparse: bool = False) -> None:
        self._count = count
        self._sparse = sparse
        self._encoding: Encoding = "bfloat16"
        self._counts: Tensor | None = None
        self._folded: distribution.Distribution | None = None
        self._rows: list[tuple[int, int, float, float]] = []
        self._channel_amax: NDArray[np.float32] | None = None
        self._peaks = peaks.zero()
        self._massive = 0

    def update(
        self,
        x_TC: Tensor,
        *,
        sample: int,
        tokens_T: NDArray[np.int64],
        positions_T: NDArray[np.int64] | None = None,
    ) -> None:
        """Add valid tokens of one sample, at least one.

        x_TC: [tokens, channels], any float dtype, no padding. tokens_T: int64 [tokens], the ids at those positions;
        positions_T: where they are in the sample, from its start on where not given.
        """
        self._add_counts(x_TC)

        low, high = torch.aminmax(x_TC)
        self._rows.append((sample, len(tokens_T), float(low), float(high)))
        amax_C = x_TC.abs().amax(0).float().cpu().numpy()
        self._channel_amax = amax_C if self._channel_amax is None else np.maximum(self._channel_amax, amax_C)

        if not amax_C.max() <= MASSIVE_FLOOR:  # or NaN
            self._massive += count_massive(rows_above(x_TC, amax_C, MASSIVE_FLOOR).abs())

        floor = peaks.floor(self._peaks)
        candidates = candidate_channels(amax_C, floor)
        if len(candidates) >= peaks.KEPT:
            # Each candidate holds an element at least this high, so KEPT elements do; fewer channels promise nothing.
            floor = max(floor, float(amax_C[candidates].min()))
        if len(candidates):
            found = highest(x_TC, candidates, floor, sample=sample, tokens_T=tokens_T)
            if positions_T is not None:
                found = replace(found, position=positions_T[found.position].astype(np.int32))
            self._peaks = with_medians(peaks.merge(self._peaks, found), x_TC, positions_T)

    def _add_counts(self, x_TC: Tensor) -> None:
        self._encoding = encoding_of(x_TC.dtype)
        counts = self._count(x_TC)
        if self._sparse:
            new = distribution.from_dense(self._encoding, counts.cpu().numpy())
            self._folded = new if self._folded is None else distribution.merge(self._folded, new)
        else:
            self._counts = counts if self._counts is None else self._counts.add_(counts)

    def result(self) -> site.SiteStatistics:
        """What was gathered so far, on the host."""
        if self._channel_amax is None:
            return site.zero(self._encoding)
        counted = self._folded
        if self._counts is not None:
            counted = distribution.from_dense(self._encoding, self._counts.cpu().numpy())
        assert counted is not None
        return site.SiteStatistics(
            distribution=counted,
            extremes=from_rows(self._rows),
            channel_amax=self._channel_amax,
            peaks=self._peaks,
            massive=self._massive,
        )


def rows_above(x_TC: Tensor, amax_C: NDArray[np.float32], floor: float) -> Tensor:
    """Rows of x with an element whose magnitude exceeds `floor`, or with a NaN: [rows, channels].

    Such elements lie in few channels, which alone are searched. amax_C: largest |x| of each channel.
    """
    channels = torch.from_numpy(np.flatnonzero(~(amax_C <= floor))).to(x_TC.device)
    low, high = torch.aminmax(x_TC.index_select(1, channels), dim=1)
    return x_TC[~((high <= floor) & (low >= -floor))]


def candidate_channels(amax_C: NDArray[np.float32], floor: float) -> NDArray[np.int32]:
    """Channels that can hold one of the KEPT highest elements, ascending; hardly any after a few samples.

    A channel below the lowest kept peak holds none, nor does one below the KEPT-th highest channel: there are KEPT
    elements above it already. Channels with a non-finite value give no peaks; zeros are none.
    """
    candidates = np.flatnonzero((amax_C >= floor) & (amax_C > 0) & np.isfinite(amax_C))
    if len(candidates) > peaks.KEPT:
        reached = amax_C[candidates]
        candidates = candidates[reached >= np.partition(reached, -peaks.KEPT)[-peaks.KEPT]]
    return candidates.astype(np.int32)


def highest(
    x_TC: Tensor, candidates: NDArray[np.int32], floor: float, *, sample: int, tokens_T: NDArray[np.int64]
) -> peaks.Peaks:
    """The KEPT elements of largest magnitude, non-zero and at least `floor`, within a sample's candidate channels.

    Medians are left to `with_medians`, NaN.
    """
    chosen = x_TC.index_select(1, torch.from_numpy(candidates).to(x_TC.device))
    magnitude = chosen.abs()
    found = ((magnitude >= floor) & (magnitude > 0)).nonzero().cpu().numpy()
    position, column = found[:, 0], found[:, 1]
    value = chosen.float().cpu().numpy()[position, column]
    return peaks.select(
        value=value,
        sample=np.full(len(value), sample, np.int32),
        position=position.astype(np.int32),
        token=tokens_T[position].astype(np.int32),
        channel=candidates[column],
        median=np.full(len(value), np.nan, np.float32),
    )


def with_medians(kept: peaks.Peaks, x_TC: Tensor, positions_T: NDArray[np.int64] | None) -> peaks.Peaks:
    """Fill in the medians that are not known yet, NaN: they are of tokens of this tensor.

    Done last, for the few rows whose elements were kept. positions_T: where rows are in the sample, as for `update`.
    """
    new = np.isnan(kept.median)
    if not new.any():
        return kept
    rows = kept.position[new].astype(np.int64)
    if positions_T is not None:
        order = np.argsort(positions_T)
        rows = order[np.searchsorted(positions_T, rows, sorter=order)]
    distinct, where = np.unique(rows, return_inverse=True)
    median = kept.median.copy()
    chosen = x_TC.index_select(0, torch.from_numpy(distinct).to(x_TC.device)).abs()
    median[new] = row_medians(chosen.float().cpu().numpy())[where]
    return replace(kept, median=median)


def row_medians(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Median of the finite |x| of each row, the lower one of two, which is a value that occurred: float32 [rows].

    values: |x|, [rows, channels]. NumPy sorts ten times as fast as PyTorch selects on a CPU.
    """
    finite = np.isfinite(values)
    if finite.all():
        return np.sort(values, axis=1)[:, (values.shape[1] - 1) // 2]
    middle = np.maximum(finite.sum(1) - 1, 0) // 2
    ordered = np.sort(np.where(finite, values, np.float32(np.nan)), axis=1)  # NaNs last
    return np.take_along_axis(ordered, middle[:, None], axis=1)[:, 0]


def count_massive(magnitude: Tensor) -> int:
    """Finite elements above 100 and above 1,000 medians of their own row. magnitude: |x|, [tokens, channels].

    Medians are taken of few rows only: above 1,000 medians lies nothing where most of the row exceeds a thousandth of
    its maximum. A 900th is compared, to be clear of rounding in the tensor's dtype.
    """
    rows = magnitude.float().cpu().numpy()
    finite = np.where(np.isfinite(rows), rows, np.float32(0))
    few = 2 * (finite <= finite.max(1, keepdims=True, initial=0) / 900).sum(1) >= rows.shape[1]
    if not few.any():
        return 0
    median = row_medians(rows[few]).astype(np.float64)[:, None]
    wide = finite[few].astype(np.float64)
    return int(((wide > MASSIVE_FLOOR) & (wide > MASSIVE_RATIO * median)).sum())
