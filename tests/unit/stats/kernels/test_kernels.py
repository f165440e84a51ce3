"""Both kernels, compiled and PyTorch's, against the plain path and NumPy: the same bytes whatever the tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from quantaudit.stats import distribution
from quantaudit.stats.kernels.device import DeviceRecorder
from quantaudit.stats.kernels.host import HostRecorder
from quantaudit.stats.labels import Chosen, Labels
from quantaudit.stats.site import SiteStatistics
from tests.builders import Sample, differences
from tests.plain_statistics import Accumulator, PatternCounter
from tests.rows import labels_of
from tests.unit.stats.strategies import sample_lists

KERNELS: list[Callable[[], Any]] = [HostRecorder, DeviceRecorder]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
pytestmark = pytest.mark.parametrize("kernel", KERNELS)


def plain(samples: list[Sample]) -> SiteStatistics:
    accumulator = Accumulator(PatternCounter())
    for index, x_TC, tokens_T in samples:
        accumulator.update(x_TC, sample=index, tokens_T=tokens_T)
    return accumulator.result()


def hard(dtype: torch.dtype, seed: int, rows: int = 150, channels: int = 130) -> Tensor:
    """Ties, massive elements, zeros of both signs, subnormals, constants, and some values that are not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator)
    if seed % 3 == 1:
        x = (x * 2).round() / 2
    x[1], x[2], x[3] = 0.25, -0.0, 1e-7
    x[4, 4], x[5, 5] = 3000.0, -250.0
    if seed % 2:
        x[6, 6], x[7, 7], x[8] = torch.nan, -torch.inf, torch.nan
    return x.to(dtype)


def batch_labels(lengths: list[int], width: int, side: str) -> Labels:
    """Padded rows of samples 5, 3, 1, … in alternating splits."""
    segment = np.full((len(lengths), width), -1, np.int64)
    position, token = segment.copy(), segment.copy()
    for row, length in enumerate(lengths):
        where = slice(0, length) if side == "right" else slice(width - length, width)
        segment[row, where], position[row, where] = row, np.arange(length)
        token[row, where] = 1000 * row + np.arange(length)
    count = len(lengths)
    return Labels(
        segment=segment.reshape(-1), position=position.reshape(-1), token=token.reshape(-1),
        sample=np.arange(2 * count - 1, -1, -2), split=np.arange(count) % 2,
    )  # fmt: skip


@given(samples=sample_lists())
def test_any_bit_patterns(kernel: Callable[[], Any], samples: list[Sample]) -> None:
    record = kernel().site(samples[0][1].dtype)
    for index, x, tokens in samples:
        record.add(x, labels_of([(index, 0, tokens)]))
    assert differences(record.result(0), plain(samples)) == []


@given(samples=sample_lists(channels=3), sparse=st.booleans())
def test_all_samples_in_one_tensor(kernel: Callable[[], Any], samples: list[Sample], sparse: bool) -> None:
    x = torch.cat([part for _, part, _ in samples])
    record = kernel().site(x.dtype, sparse=sparse)
    record.add(x, labels_of([(index, 0, tokens) for index, _, tokens in samples]))
    assert differences(record.result(0), plain(samples)) == []


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_padded_batches_in_both_splits(kernel: Callable[[], Any], dtype: torch.dtype, side: str, sparse: bool) -> None:
    record = kernel().site(dtype, sparse=sparse)
    accumulators = [Accumulator(PatternCounter()) for _ in range(2)]
    for seed in range(4):
        lengths = [50, 41, 17]
        labels, x = batch_labels(lengths, 50, side), hard(dtype, seed)
        labels.sample[:] += 10 * seed
        record.add(x, labels)
        for row, length in enumerate(lengths):
            first = 50 * row + (0 if side == "right" else 50 - length)
            accumulators[row % 2].update(
                x[first : first + length], sample=int(labels.sample[row]), tokens_T=labels.token[first : first + length]
            )
    for split in range(2):
        assert differences(record.result(split), accumulators[split].result()) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_chosen_rows_in_any_order(kernel: Callable[[], Any], dtype: torch.dtype) -> None:
    """As an expert is given them: some of the tokens, some of the rows not counting."""
    labels, x = batch_labels([40, 30, 30], 50, "right"), hard(dtype, 1)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randperm(150, generator=generator)[:90]
    valid = torch.rand(90, generator=generator) < 0.8
    record = kernel().site(dtype, sparse=True)
    record.add(x[tokens], labels, Chosen(tokens, valid))
    for split in range(2):
        accumulator = Accumulator(PatternCounter())
        for row in range(split, 3, 2):
            mine = tokens[valid & torch.from_numpy(labels.segment == row)[tokens]]
            mine = mine.sort().values  # the plain path breaks ties by place in the tensor
            accumulator.update(
                x[mine],
                sample=int(labels.sample[row]),
                tokens_T=labels.token[mine.numpy()],
                positions_T=labels.position[mine.numpy()],
            )
        assert differences(record.result(split), accumulator.result()) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_change_nothing(kernel: Callable[[], Any], dtype: torch.dtype) -> None:
    wide = hard(dtype, 3, channels=260)
    labels = labels_of([(0, 0, np.arange(150))])
    half, turned = wide.chunk(2, -1)[1], wide[:, :150].T
    for view in (half, turned, wide[:, ::2]):
        mine = labels if len(view) == 150 else labels_of([(0, 0, np.arange(len(view)))])
        actual = []
        for x in (view, view.contiguous()):
            record = kernel().site(dtype)
            record.add(x, mine)
            actual.append(record.result(0))
        assert differences(*actual) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_numpy(kernel: Callable[[], Any], dtype: torch.dtype) -> None:
    """Histogram, maxima and massive activations by brute force in float64."""
    x = hard(dtype, 2)
    record = kernel().site(dtype)
    record.add(x, labels_of([(0, 0, np.arange(150))]))
    actual = record.result(0)
    raw = x.double().numpy()
    counted = x.to(torch.bfloat16) if dtype == torch.float32 else x
    bits: NDArray[np.uint16] = counted.view(torch.int16).numpy().view(np.uint16)
    dense = np.bincount(bits.reshape(-1), minlength=1 << 16)
    expected = distribution.from_dense(actual.distribution.encoding, dense)
    assert differences(actual.distribution, expected) == []
    assert actual.channel_amax.tolist() == np.abs(raw).max(0).tolist()
    assert (actual.extremes.min[0], actual.extremes.max[0]) == (raw.min(), raw.max())
    medians = np.quantile(np.abs(raw), 0.5, axis=1, method="inverted_cdf")[:, None]
    assert actual.massive == ((np.abs(raw) > 100) & (np.abs(raw) > 1000 * medians)).sum() == 1
    order = sorted((-abs(v), t, c) for t, row in enumerate(raw) for c, v in enumerate(row) if v)[:100]
    p = actual.peaks
    seen = zip(p.value.tolist(), p.position.tolist(), p.channel.tolist(), strict=True)
    assert [(-abs(v), t, c) for v, t, c in seen] == order


def test_rows_of_padding_alone_are_nothing(kernel: Callable[[], Any]) -> None:
    record = kernel().site(torch.bfloat16)
    record.add(torch.ones(4, 3).bfloat16(), batch_labels([0], 4, "right"))
    assert record.result(0) is None
    assert record.result(1) is None


def test_counters_that_are_emptied_lose_nothing(kernel: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from quantaudit.stats.kernels import device, host

    monkeypatch.setattr(host, "_FOLD", 1000)
    monkeypatch.setattr(device, "SPARSE_BYTES", 1)
    shared, samples = kernel(), [(i, hard(torch.bfloat16, i), np.arange(150)) for i in range(4)]
    sites = [shared.site(torch.bfloat16, sparse=sparse) for sparse in (False, True, True)]
    for index, x, tokens in samples:
        for record in sites:
            record.add(x, labels_of([(index, 0, tokens)]))
    for record in sites:
        assert differences(record.result(0), plain(samples)) == []
