"""Counts by octave equal a histogram of the tensor itself over the same edges, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given

from quantaudit.stats.octaves import LEFT_BELOW, MOST_BINS, PARTS, octaves
from tests.builders import Sample, accumulate, distribution_of
from tests.unit.stats.strategies import DTYPES, sample_lists
from tests.unit.stats.test_distribution import SHAPES, tensor, wide


def check(x: torch.Tensor) -> None:
    """Counts against NumPy's histogram over the same edges, and that no finer or longer bins would have done."""
    values, counted = np.abs(wide(x)), octaves(distribution_of(x))
    assert counted is not None
    edges = np.exp2((counted.first + np.arange(len(counted.counts) + 1)) / counted.parts)
    # NumPy's last bin is closed; what lies on an edge belongs to the bin above it.
    expected = np.histogram(values, np.append(edges[:-1], np.nextafter(edges[-1], 0)))[0]
    assert list(counted.counts) == expected.tolist()
    assert counted.zeros == (values == 0).sum()
    assert counted.zeros + counted.below + sum(counted.counts) == values.size
    assert edges[-2] <= values.max() < edges[-1]
    some = values[values > 0]
    low = np.quantile(some, LEFT_BELOW, method="inverted_cdf")
    assert counted.below <= LEFT_BELOW * some.size or len(counted.counts) == MOST_BINS
    finer = [parts for parts in PARTS if parts > counted.parts]
    assert all(np.log2(values.max() / low) * parts > MOST_BINS - 2 for parts in finer)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "zeros"])
@pytest.mark.parametrize("encoding", DTYPES)
def test_counts_are_numpys(shape: str, encoding: str) -> None:
    check(tensor(shape, DTYPES[encoding]))


@given(sample_lists())
def test_any_bit_pattern_is_in_its_bin(samples: list[Sample]) -> None:
    x = torch.cat([x.flatten() for _, x, _ in samples])
    if (wide(x) != 0).any():
        check(x)
    else:
        assert octaves(accumulate(samples).distribution) is None


def test_without_a_value_but_zero_there_are_no_bins() -> None:
    assert octaves(distribution_of(torch.zeros(9, dtype=torch.bfloat16))) is None
