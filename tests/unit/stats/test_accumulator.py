"""Whatever the order, the shards and the dtype: the same elements give the same statistics."""

from __future__ import annotations

import math
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.stats import site
from tests.builders import Sample, accumulate, differences, make_samples
from tests.plain_statistics import Accumulator, PatternCounter, encoding_of
from tests.unit.stats.strategies import sample_lists


@given(sample_lists(), st.randoms(use_true_random=False))
def test_any_order_of_samples_gives_the_same_statistics(samples: list[Sample], random: object) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)
    assert differences(accumulate(shuffled), accumulate(samples)) == []


@given(sample_lists(), st.lists(st.integers(0, 2), min_size=5, max_size=5))
def test_any_partition_into_shards_merges_to_the_same_statistics(samples: list[Sample], owner: list[int]) -> None:
    shards = [[s for s, o in zip(samples, owner, strict=False) if o == k] for k in range(3)]
    merged = reduce(site.merge, [accumulate(shard) for shard in shards if shard])
    assert differences(merged, accumulate(samples)) == []


@given(sample_lists())
def test_extremes_are_those_of_every_sample(samples: list[Sample]) -> None:
    actual = accumulate(samples).extremes
    assert actual.sample.tolist() == [index for index, _, _ in samples]
    assert actual.tokens.tolist() == [len(tokens) for _, _, tokens in samples]
    for row, (_, x, _) in enumerate(samples):
        values = x.float().numpy()
        # NumPy's minimum is NaN where there is one, as is the extreme of a broken sample.
        np.testing.assert_array_equal(actual.min[row], values.min())
        np.testing.assert_array_equal(actual.max[row], values.max())


@given(sample_lists())
def test_channel_amax_is_the_largest_magnitude_of_every_channel(samples: list[Sample]) -> None:
    raw = np.concatenate([x.float().numpy() for _, x, _ in samples])
    np.testing.assert_array_equal(accumulate(samples).channel_amax, np.abs(raw).max(0))


def test_tokens_are_counted_once_whatever_the_number_of_channels() -> None:
    actual = accumulate(make_samples([torch.ones(5, 7).bfloat16(), torch.ones(2, 7).bfloat16()]))
    assert actual.tokens == 7
    assert actual.distribution.counts.sum() == 49


def test_the_float32_extremes_and_channels_are_not_rounded() -> None:
    x = torch.tensor([[1.0000001, -3.1415927], [0.1, 2.7182817]])
    actual = accumulate(make_samples([x]))
    assert actual.extremes.min.tolist() == [x.min().item()]
    assert actual.extremes.max.tolist() == [x.max().item()]
    assert actual.channel_amax.tolist() == x.abs().amax(0).tolist()
    assert site.summary(actual).amax == x.abs().max().item()


def test_a_broken_sample_leaves_the_summary_to_the_finite_values() -> None:
    actual = site.summary(accumulate(make_samples([torch.tensor([[1.0, math.nan], [math.inf, -4.0]])])))
    assert (actual.nan, actual.inf, actual.min, actual.max, actual.amax) == (1, 1, -4.0, 1.0, 4.0)


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float16"),
        (torch.float32, "bfloat16"),
        (torch.float64, "bfloat16"),
    ],
)
def test_only_float16_is_counted_in_float16_patterns(dtype: torch.dtype, encoding: str) -> None:
    assert encoding_of(dtype) == encoding
    assert accumulate(make_samples([torch.ones(2, 3, dtype=dtype)])).distribution.encoding == encoding


def massive(samples: list[Sample]) -> int:
    """Elements above 100 and 1,000 medians of their own token, finite values only, in float64."""
    total = 0
    for _, x, _ in samples:
        for row in np.abs(x.double().numpy()):
            finite = row[np.isfinite(row)]
            if len(finite):
                total += int(((finite > 100) & (finite > 1000 * np.quantile(finite, 0.5, method="inverted_cdf"))).sum())
    return total


@given(sample_lists())
def test_massive_activations_of_any_bit_patterns(samples: list[Sample]) -> None:
    assert accumulate(samples).massive == massive(samples)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("width", [1, 2, 63, 64])
def test_massive_activations_at_the_edge(dtype: torch.dtype, width: int) -> None:
    """Rows whose largest element lies within a few steps of 1,000 medians, on both sides; some broken."""
    generator = torch.Generator().manual_seed(width)
    x = torch.rand(400, width, generator=generator) * 4 + 0.1
    peak = x.median(1).values * 1000 * (1 + 0.02 * torch.randn(400, generator=generator))
    x[torch.arange(400), torch.arange(400) % width] = peak
    x[5, 0], x[6, 0], x[7] = math.nan, math.inf, math.nan
    samples = make_samples([x[:150].to(dtype), -x[150:].to(dtype)])
    actual = accumulate(samples)
    assert actual.massive == massive(samples)
    assert (actual.massive > 50) == (width > 1)


def test_an_accumulator_that_saw_nothing_is_the_identity() -> None:
    assert differences(Accumulator(PatternCounter()).result(), site.zero("bfloat16")) == []


def test_the_input_tensor_is_left_as_it_was() -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
    before = x.clone()
    accumulate(make_samples([x]))
    assert torch.equal(x, before)
