"""Statistics of tensors on an accelerator, gathered where they are: the host never waits for a result before the end.

Nothing here has a size or a branch that depends on what a tensor holds. Values are handled as bit patterns, as by the
compiled code for main memory, and come out the same to the last bit; it runs on any device, which is how it is tested.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats import distribution, extremes, peaks, site
from quantaudit.stats.distribution import BINS, MASSIVE_FLOOR, MASSIVE_RATIO, Encoding, decode
from quantaudit.stats.labels import ALL, SPLITS, Chosen, DeviceLabels, Labels

SPARSE_BYTES = 1 << 30
"""Memory that the counters of sparse sites may take up before they are fetched."""
_LOW = (1 << 32) - 1
_INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
# Columns of a peak.
_MAGNITUDE, _VALUE, _SAMPLE, _POSITION, _CHANNEL, _TOKEN, _MEDIAN = range(7)


class DeviceRecorder:
    """What the sites of one run share."""

    def __init__(self) -> None:
        self._sparse: list[_State] = []

    def site(self, dtype: torch.dtype, *, sparse: bool = False) -> DeviceSite:
        """An empty site of tensors of this dtype. sparse: there may be thousands; counters are fetched now and then."""
        return DeviceSite(self, dtype, sparse=sparse)

    def claim(self, state: _State) -> None:
        """A sparse site is about to make counters: where all of them take up too much, they are fetched first."""
        if (len(self._sparse) + 1) * (BINS + 1) * 8 > SPARSE_BYTES:
            for other in self._sparse:
                other.fold()
            self._sparse.clear()
        self._sparse.append(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """A tensor's rows, those of one split. magnitude, pattern: int64 [rows, channels]; counted: bool [rows]."""

    pattern: Tensor
    magnitude: Tensor
    infinity: int
    counted: Tensor
    segment: Tensor
    position: Tensor
    token: Tensor
    order: Tensor
    labels: DeviceLabels


class DeviceSite:
    """Running statistics of one site in both splits."""

    def __init__(self, shared: DeviceRecorder, dtype: torch.dtype, *, sparse: bool) -> None:
        self._shared = shared
        self._dtype = dtype if dtype in _INFINITY else torch.float32
        self._sparse = sparse
        self._states: list[_State | None] = [None] * SPLITS

    def add(self, x_NC: Tensor, labels: Labels, chosen: Chosen = ALL) -> None:
        """Add the rows of a tensor that count. x_NC: [rows, channels]. It is not kept."""
        if not len(x_NC):
            return
        x_NC = x_NC.to(self._dtype)
        on = labels.on(x_NC.device)
        picked = (on.segment, on.position, on.token, on.order)
        if chosen.tokens is not None:
            picked = tuple(values.index_select(0, chosen.tokens) for values in picked)  # type: ignore[assignment]
        segment, position, token, order = picked
        if chosen.valid is not None:
            segment = torch.where(chosen.valid, segment, len(labels.sample))
        wide = self._dtype == torch.float32
        raw = x_NC.contiguous().view(torch.int32 if wide else torch.int16).long()
        pattern = raw & (_LOW if wide else 0xFFFF)
        magnitude = pattern & (0x7FFFFFFF if wide else 0x7FFF)
        bins = rounded(x_NC) if wide else pattern
        medians = median_of_finite(x_NC)
        split_of_row = on.split.index_select(0, segment)
        for split in labels.splits:
            rows = _Rows(
                pattern=pattern,
                magnitude=magnitude,
                infinity=_INFINITY[self._dtype],
                counted=split_of_row == split,
                segment=segment,
                position=position,
                token=token,
                order=order,
                labels=on,
            )
            state = self._states[split]
            if state is None:
                state = self._states[split] = _State(x_NC.shape[1], x_NC.device)
            if state.counts is None:
                if self._sparse:
                    self._shared.claim(state)
                state.counts = torch.zeros(BINS + 1, dtype=torch.int64, device=x_NC.device)
            # Rows that do not count fall into a bin of their own.
            where = torch.where(rows.counted[:, None], bins, BINS).reshape(-1)
            state.counts.scatter_add_(0, where, state.one.expand(len(where)))
            state.add(rows, x_NC, medians)

    def result(self, split: int) -> site.SiteStatistics | None:
        """What was added of a split; None where nothing was."""
        state = self._states[split]
        encoding: Encoding = "float16" if self._dtype == torch.float16 else "bfloat16"
        return None if state is None else state.result(encoding, self._dtype)


class _State:
    """One split of one site, on the device but for counters that were fetched."""

    def __init__(self, channels: int, device: torch.device) -> None:
        self.counts: Tensor | None = None
        self.one = torch.ones(1, dtype=torch.int64, device=device)
        self._folded: NDArray[np.int64] | None = None
        self._amax = torch.zeros(channels, dtype=torch.int64, device=device)
        self._massive = torch.zeros((), dtype=torch.int64, device=device)
        self._peaks = torch.full((peaks.KEPT, 7), -1, dtype=torch.int64, device=device)
        self._extremes: list[Tensor] = []

    def add(self, rows: _Rows, x_NC: Tensor, medians: Tensor) -> None:
        """Everything but the counts. medians: float32 [rows]."""
        self._amax = torch.maximum(self._amax, torch.where(rows.counted[:, None], rows.magnitude, 0).amax(0))
        self._extremes.append(extremes_by_sample(rows))
        self._massive += (massive_by_row(x_NC, medians) * rows.counted).sum()
        self._peaks = merge_peaks(self._peaks, highest(rows, medians))

    def fold(self) -> None:
        """Fetch the counters."""
        if self.counts is not None:
            fetched: NDArray[np.int64] = self.counts[:BINS].cpu().numpy()
            self._folded = fetched.copy() if self._folded is None else self._folded + fetched
            self.counts = None

    def result(self, encoding: Encoding, dtype: torch.dtype) -> site.SiteStatistics | None:
        """The statistics; None where no row counted."""
        rows = torch.cat(self._extremes).cpu().numpy()
        rows = rows[rows[:, 1] > 0]
        if not len(rows):
            return None
        self.fold()
        assert self._folded is not None
        infinity = _INFINITY[dtype]

        def values(pattern: NDArray[np.int64]) -> NDArray[np.float32]:
            if dtype == torch.float32:
                return pattern.astype(np.uint32).view(np.float32)
            return decode(encoding, pattern.astype(np.uint16))

        low, high = rows[:, 2], rows[:, 3]
        broken = (high > infinity) | (-low - 1 > infinity)
        sign = 1 << (31 if dtype == torch.float32 else 15)
        low, high = (np.where(key < 0, sign + (-key - 1), key) for key in (low, high))
        nan = infinity | infinity >> 1
        p = self._peaks.cpu().numpy()
        p = p[p[:, _MAGNITUDE] > 0]
        ints = p.astype(np.int32)
        return site.SiteStatistics(
            distribution=distribution.from_dense(encoding, self._folded),
            extremes=extremes.from_arrays(
                rows[:, 0].astype(np.int32),
                rows[:, 1].astype(np.int32),
                values(np.where(broken, nan, low)),
                values(np.where(broken, nan, high)),
            ),
            channel_amax=values(self._amax.cpu().numpy()),
            peaks=peaks.select(
                value=values(p[:, _VALUE]),
                sample=ints[:, _SAMPLE],
                position=ints[:, _POSITION],
                token=ints[:, _TOKEN],
                channel=ints[:, _CHANNEL],
                median=p[:, _MEDIAN].astype(np.uint32).view(np.float32),
            ),
            massive=int(self._massive),
        )


def rounded(x_NC: Tensor) -> Tensor:
    """Patterns of float32 values rounded to bfloat16, int64; every NaN becomes the one that it becomes on a CPU."""
    patterns = x_NC.to(torch.bfloat16).contiguous().view(torch.int16).long() & 0xFFFF
    return torch.where(x_NC.isnan(), 0xFFFF, patterns)


def median_of_finite(x_NC: Tensor) -> Tensor:
    """Median of the finite magnitudes of each row, the lower one of two: float32 [rows], NaN where there is none."""
    wide = x_NC.float()
    return torch.where(wide.isfinite(), wide.abs(), torch.nan).nanmedian(1).values


def massive_by_row(x_NC: Tensor, medians: Tensor) -> Tensor:
    """Finite elements above 100 and above 1,000 medians of their row: int64 [rows]."""
    bound = (MASSIVE_RATIO * medians.double()).clamp_min(MASSIVE_FLOOR)
    # Compared in float32 against the highest float32 that is not above the bound, which is the same comparison.
    near = bound.float()
    down = torch.nextafter(near, torch.zeros_like(near))
    floor = torch.where(near.double() > bound, down, near)
    magnitude = x_NC.float().abs()
    return ((magnitude > floor[:, None]) & (magnitude < torch.inf)).sum(1)


def extremes_by_sample(rows: _Rows) -> Tensor:
    """Index, rows, lowest and highest key of each of a batch's samples: int64 [samples, 4].

    Keys are ordered like values: a magnitude's pattern, −1 minus it where the value is negative.
    """
    keys = torch.where(rows.pattern == rows.magnitude, rows.magnitude, -1 - rows.magnitude)
    segments = len(rows.labels.sample)
    segment = torch.where(rows.counted, rows.segment, segments - 1)
    zero = torch.zeros(segments, dtype=torch.int64, device=keys.device)
    count = zero.scatter_add(0, segment, rows.counted.long())
    low = zero.scatter_reduce(0, segment, keys.amin(1), "amin", include_self=False)
    high = zero.scatter_reduce(0, segment, keys.amax(1), "amax", include_self=False)
    return torch.stack([rows.labels.sample, count, low, high], 1)[:-1]


def highest(rows: _Rows, medians: Tensor) -> Tensor:
    """The KEPT highest peaks of a tensor, int64 [at most KEPT, 7], by falling magnitude, sample, position, channel.

    Channels in which a sample holds a value that is not finite give none of its peaks.

    The KEPT rows of highest (maximum, then first by sample and position) are enough. Let an element lie in another row.
    The largest element of each of those KEPT rows is at least as high as that other row's maximum; where it is as high,
    its row comes first. So KEPT elements stand before it.
    """
    count, channels = rows.magnitude.shape
    broken = (rows.magnitude >= rows.infinity).long()
    where = rows.segment[:, None].expand(count, channels)
    table = torch.zeros(len(rows.labels.sample), channels, dtype=torch.int64, device=broken.device)
    table = table.scatter_reduce(0, where, broken, "amax")
    sound = rows.counted[:, None] & (table.index_select(0, rows.segment) == 0)
    magnitude = torch.where(sound, rows.magnitude, 0)

    keys = (magnitude.amax(1) << 32) | (_LOW - rows.order)
    row = keys.topk(min(peaks.KEPT, count)).indices
    row = row.index_select(0, rows.order.index_select(0, row).argsort())
    chosen = magnitude.index_select(0, row).reshape(-1)
    place = torch.arange(len(chosen), device=chosen.device)
    best = ((chosen << 32) | (_LOW - place)).topk(min(peaks.KEPT, len(chosen))).indices
    row, channel = row.index_select(0, best // channels), best % channels
    picked = chosen.index_select(0, best)
    value = rows.pattern.reshape(-1).index_select(0, row * channels + channel)
    columns = (
        torch.where(picked > 0, picked, -1),
        value,
        rows.labels.sample.index_select(0, rows.segment.index_select(0, row)),
        rows.position.index_select(0, row),
        channel,
        rows.token.index_select(0, row),
        medians.index_select(0, row).view(torch.int32).long() & _LOW,
    )
    return torch.stack(columns, 1)


def merge_peaks(a: Tensor, b: Tensor) -> Tensor:
    """The KEPT highest of both, int64 [KEPT, 7]; entries of magnitude −1 are none."""
    both = torch.cat([a, b])
    place = (both[:, _SAMPLE] << 32) + both[:, _POSITION]
    # From the last key to the first: a stable sort keeps the order of the one before among equals.
    order = both[:, _CHANNEL].argsort(stable=True)
    order = order.index_select(0, place.index_select(0, order).argsort(stable=True))
    order = order.index_select(0, (-both[:, _MAGNITUDE]).index_select(0, order).argsort(stable=True))
    return both.index_select(0, order[: peaks.KEPT])
