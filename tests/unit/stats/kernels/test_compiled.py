"""The compiled code's own promises: counters of other threads, and statistics that are left out."""

from __future__ import annotations

import numpy as np
import torch

from quantaudit.stats.kernels.host import HostRecorder
from quantaudit.stats.kernels.host_count import HISTOGRAM
from quantaudit.stats.kernels.host_kernel import compile_record
from tests.builders import differences
from tests.rows import labels_of


def test_first_peaks_of_a_large_tensor_are_those_of_numpy() -> None:
    """The floor that the histogram gives loses none, with ties at the hundredth, whatever rounding did to float32."""
    generator = torch.Generator().manual_seed(0)
    for dtype, step in ((torch.bfloat16, 0.25), (torch.float32, 0.25), (torch.float32, 0.0)):
        x = torch.randn(400, 300, generator=generator)
        x = ((x / step).round() * step if step else x).to(dtype)
        record = HostRecorder().site(dtype)
        record.add(x, labels_of([(0, 0, np.arange(400))]))
        actual = record.result(0)
        assert actual is not None
        raw = x.double().numpy()
        rows, channels = np.indices(raw.shape).reshape(2, -1)
        order = np.lexsort((channels, rows, -np.abs(raw).reshape(-1)))[:100]
        assert actual.peaks.position.tolist() == rows[order].tolist()
        assert actual.peaks.channel.tolist() == channels[order].tolist()


def test_counters_are_cleared_for_the_next_site() -> None:
    shared = HostRecorder()
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(1)).bfloat16()
    labels = labels_of([(0, 0, np.arange(300))])
    actual = []
    for _ in range(2):
        record = shared.site(x.dtype)
        record.add(x, labels)
        actual.append(record.result(0))
    assert differences(actual[0], actual[1]) == []
    assert actual[0] is not None
    assert actual[0].distribution.counts.sum() == x.numel()


def test_what_is_left_out_is_not_gathered() -> None:
    record = HostRecorder(compile_record(HISTOGRAM)).site(torch.bfloat16)
    record.add(torch.ones(3, 5).bfloat16(), labels_of([(0, 0, np.arange(3))]))
    assert record.result(0) is None  # no sample has extremes
