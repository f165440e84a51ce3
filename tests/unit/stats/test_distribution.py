"""Numbers read from the histogram equal NumPy's, in float64, on the tensor itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given

from quantaudit.stats import distribution
from quantaudit.stats.distribution import interpolated_quantiles, massive_threshold, quantiles, summary
from quantaudit.stats.site import summary as site_summary
from tests.builders import Sample, accumulate, distribution_of, from_patterns, make_samples
from tests.unit.stats.strategies import DTYPES, sample_lists

LEVELS = [0.0, 0.01, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999, 1.0]
SHAPES = {
    "gaussian": lambda g: torch.randn(4001, generator=g) * 3 + 0.5,
    "heavy tails": lambda g: torch.randn(5000, generator=g) / torch.randn(5000, generator=g).abs().clamp_min(1e-3),
    "massive": lambda g: torch.cat([torch.randn(3000, generator=g) * 0.1, torch.tensor([3000.0, -2500.0, 100.0])]),
    "one value": lambda g: torch.full((17,), -1.625),
    "one element": lambda g: torch.tensor([0.75]),
    "zeros": lambda g: torch.zeros(9),
    "both zeros": lambda g: torch.tensor([0.0, -0.0, 0.0, 2.0]),
    "negative only": lambda g: -torch.rand(100, generator=g) - 1,
    "positive only": lambda g: torch.rand(100, generator=g) + 1,
}


def tensor(shape: str, dtype: torch.dtype) -> torch.Tensor:
    return SHAPES[shape](torch.Generator().manual_seed(7)).clamp(-60000, 60000).to(dtype)


def wide(x: torch.Tensor) -> np.ndarray:
    """The finite values in float64."""
    values = x.double().flatten().numpy()
    return values[np.isfinite(values)]


def near(expected: float) -> object:
    """Float64 sums in another order: equal but for the last digits."""
    return pytest.approx(expected, rel=1e-12, abs=1e-300, nan_ok=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("encoding", DTYPES)
def test_the_summary_of_a_16_bit_tensor_is_exact(shape: str, encoding: str) -> None:
    x = tensor(shape, DTYPES[encoding])
    values, actual = wide(x), summary(distribution_of(x))
    assert (actual.values, actual.nan, actual.inf) == (values.size, 0, 0)
    assert (actual.min, actual.max, actual.amax) == (values.min(), values.max(), np.abs(values).max())
    assert actual.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-12 * np.abs(values).mean())
    assert actual.rms == near(math.sqrt(np.mean(values**2)))
    expected = np.quantile(np.abs(values), [0.5, 0.99, 0.999, 0.9999], method="inverted_cdf")
    assert [actual.median, actual.p99, actual.p999, actual.p9999] == expected.tolist()


@pytest.mark.parametrize(("median", "expected"), [(0.0, 100.0), (0.05, 100.0), (0.1, 100.0), (2.0, 2000.0)])
def test_massive_means_above_a_hundred_and_above_a_thousand_medians(median: float, expected: float) -> None:
    assert massive_threshold(median) == pytest.approx(expected)


@given(sample_lists())
def test_any_bit_pattern_is_counted_and_every_quantile_is_numpys(samples: list[Sample]) -> None:
    x = torch.cat([x.flatten() for _, x, _ in samples])
    values, raw = wide(x), x.double().numpy()
    actual = accumulate(samples).distribution
    described = summary(actual)
    assert described.values == x.numel()
    assert described.nan == int(np.isnan(raw).sum())
    assert described.inf == int(np.isinf(raw).sum())
    if values.size:
        expected = np.quantile(np.abs(values), LEVELS, method="inverted_cdf").tolist()
        assert quantiles(actual, LEVELS) == expected
        with np.errstate(over="ignore"):
            assert interpolated_quantiles(actual, LEVELS) == near(np.quantile(np.abs(values), LEVELS).tolist())
        assert (described.min, described.max) == (values.min(), values.max())
        assert described.rms == near(math.sqrt(np.mean(values**2)))
    else:
        assert all(math.isnan(value) for value in (*quantiles(actual, LEVELS), described.min, described.mean))


@pytest.mark.parametrize("patterns", [[], [0x7FC0, 0x7F80, 0xFF80]], ids=["empty", "NaN and infinities alone"])
def test_without_a_finite_value_there_is_no_quantile(patterns: list[int]) -> None:
    actual = distribution.zero("bfloat16")
    if patterns:
        actual = distribution_of(from_patterns(np.asarray(patterns, np.uint16), torch.bfloat16))
    described = summary(actual)
    assert (described.values, described.nan, described.inf) == (len(patterns), len(patterns[:1]), len(patterns[1:]))
    absent = (*quantiles(actual, LEVELS), *interpolated_quantiles(actual, LEVELS), described.min, described.mean)
    assert len(absent) == 2 * len(LEVELS) + 2
    assert all(math.isnan(value) for value in (*absent, described.max, described.amax, described.rms))


@pytest.mark.parametrize("n", [1, 2, 3, 7, 100, 999, 1000, 1001, 10_000, 12_345])
def test_quantiles_pick_numpys_element_at_every_size(n: int) -> None:
    x = torch.arange(1, n + 1).float().to(torch.bfloat16)
    levels = [*LEVELS, 1 / 3, 0.1, 0.3, 0.7]
    assert quantiles(distribution_of(x), levels) == np.quantile(wide(x), levels, method="inverted_cdf").tolist()


@pytest.mark.parametrize("encoding", DTYPES)
def test_all_65536_patterns_decode_to_what_torch_reads(encoding: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    decoded = distribution.decode(encoding, patterns)
    np.testing.assert_array_equal(decoded, from_patterns(patterns, DTYPES[encoding]).float().numpy())


@pytest.mark.parametrize("encoding", DTYPES)
def test_every_pattern_is_counted_in_its_own_bin(encoding: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    x = from_patterns(patterns, DTYPES[encoding])
    actual = distribution_of(torch.cat([x, x[1000:1003]]))
    np.testing.assert_array_equal(actual.patterns, patterns)
    expected = np.ones(1 << 16, np.int64)
    expected[1000:1003] = 2
    np.testing.assert_array_equal(actual.counts, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_float32_tensor_keeps_exact_extremes_and_bounded_moments(shape: str) -> None:
    x = tensor(shape, torch.float32)
    values = wide(x)
    actual = site_summary(accumulate(make_samples([x.reshape(-1, 1)])))
    size = np.abs(values).mean()
    assert (actual.min, actual.max, actual.amax) == (values.min(), values.max(), np.abs(values).max())
    assert actual.mean == pytest.approx(values.mean(), abs=2**-8 * size)
    assert actual.rms == pytest.approx(math.sqrt(np.mean(values**2)), rel=2**-8)
    expected = np.quantile(np.abs(values), [0.5, 0.99, 0.999, 0.9999], method="inverted_cdf")
    assert [actual.median, actual.p99, actual.p999, actual.p9999] == pytest.approx(expected.tolist(), rel=2**-8)


def test_a_float32_tensor_is_rounded_to_the_nearest_bfloat16() -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(1))
    assert distribution_of(x).counts.sum() == 500
    np.testing.assert_array_equal(distribution_of(x).patterns, distribution_of(x.bfloat16()).patterns)
    np.testing.assert_array_equal(distribution_of(x).counts, distribution_of(x.bfloat16()).counts)


def test_a_non_contiguous_tensor_is_counted_like_its_copy() -> None:
    x = torch.randn(12, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    tokens = np.arange(20, dtype=np.int64)
    a, b = (accumulate([(0, view, tokens)]) for view in (x.T[::2], x.T[::2].contiguous()))
    np.testing.assert_array_equal(a.distribution.patterns, b.distribution.patterns)
    np.testing.assert_array_equal(a.distribution.counts, b.distribution.counts)


def test_the_reused_buffer_never_leaks_an_earlier_tensor() -> None:
    from tests.plain_statistics import PatternCounter

    count = PatternCounter()
    for size in (1000, 3, 2000, 1):
        x = torch.full((size, 1), float(size)).bfloat16()
        assert int(count(x).sum()) == size
        assert int(count(x).count_nonzero()) == 1


def test_merging_different_encodings_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        distribution.merge(distribution.zero("bfloat16"), distribution.zero("float16"))
