"""Shared among threads or not, the compiled kernel counts the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantaudit.stats.kernels.host import HostRecorder
from tests.builders import differences
from tests.rows import labels_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_threads_change_nothing(dtype: torch.dtype) -> None:
    shared = HostRecorder()
    if shared.parallel is None:
        pytest.skip("PyTorch's threads are not GNU OpenMP's here")
    x = torch.randn(300, 200, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[17, 3] = torch.nan
    actual = []
    for threads in (1, 2, 3):
        shared.threads = threads
        record = shared.site(dtype)
        for index in range(3):
            record.add(x, labels_of([(2 * index, index % 2, np.arange(120)), (2 * index + 1, 0, np.arange(180))]))
        actual.append([record.result(split) for split in range(2)])
    for split in range(2):
        assert differences(actual[0][split], actual[1][split]) == []
        assert differences(actual[0][split], actual[2][split]) == []
