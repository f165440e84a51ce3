"""Stability of a peak: the closed form against all subsets, buckets and exceedance against plain counting."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.stats.maxima.stability import (
    exceedance,
    finite_amax,
    maxima_by,
    maxima_by_length,
    proportional,
    sample_amax,
    stratified_maximum,
    subset_maximum,
    subset_sizes,
    worst_exceedances,
)
from tests.builders import accumulate, make_samples

values = st.lists(st.floats(0, 1e5, width=32), min_size=1, max_size=9)


@given(values, st.data())
def test_the_maximum_of_subsets_is_that_of_all_of_them(amax: list[float], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(amax)))
    maxima = [max(subset) for subset in combinations(amax, size)]
    actual = subset_maximum(np.asarray(amax), size)
    assert actual.mean == pytest.approx(np.mean(maxima), rel=1e-9, abs=1e-30)
    assert actual.std == pytest.approx(np.std(maxima), rel=1e-6, abs=1e-6 * max(amax) + 1e-30)
    if actual.mean:
        assert actual.variation == actual.std / actual.mean


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1e5, width=32)), min_size=1, max_size=8), st.data())
def test_the_maximum_of_stratified_subsets_is_that_of_all_of_them(
    rows: list[tuple[str, float]], data: st.DataObject
) -> None:
    labels, amax = [label for label, _ in rows], np.asarray([value for _, value in rows])
    size, repeats = data.draw(st.integers(1, len(rows))), 2
    drawn = proportional({label: labels.count(label) for label in sorted(set(labels))}, size)
    assert sum(drawn.values()) == size
    assert all(abs(drawn[label] - size * labels.count(label) / len(rows)) < 1 for label in drawn)
    by_label = [combinations([v for name, v in rows if name == label], n) for label, n in drawn.items()]
    maxima = np.asarray([max(value for part in parts for value in part) for parts in product(*by_label)])
    actual = stratified_maximum(amax, labels, size, repeats)
    tiny = 1e-6 * amax.max() + 1e-30
    assert actual.mean == pytest.approx(maxima.mean(), rel=1e-6, abs=tiny)
    assert actual.std == pytest.approx(maxima.std(), rel=1e-3, abs=1e-3 * amax.max() + 1e-30)
    spread = np.abs(maxima[:, None] - maxima).mean()  # of two subsets that are drawn independently
    assert actual.spread * actual.mean == pytest.approx(spread, rel=1e-6, abs=tiny)


def test_one_label_is_no_stratum() -> None:
    amax = np.random.default_rng(4).lognormal(size=300)
    plain, stratified = subset_maximum(amax, 40), stratified_maximum(amax, ["a"] * 300, 40, 5)
    assert (stratified.mean, stratified.std) == pytest.approx((plain.mean, plain.std), rel=1e-6)


def test_large_corpora_agree_with_seeded_subsampling() -> None:
    rng = np.random.default_rng(3)
    amax = rng.lognormal(size=5000)
    drawn = [rng.choice(amax, 1000, replace=False).max() for _ in range(2000)]
    actual = subset_maximum(amax, 1000)
    assert actual.mean == pytest.approx(np.mean(drawn), rel=0.02)
    assert actual.std == pytest.approx(np.std(drawn), rel=0.1)


@pytest.mark.parametrize(
    ("samples", "sizes"),
    [
        (0, []),
        (24, []),
        (25, [5]),
        (49, [5, 9]),
        (50, [5, 10]),
        (166, [5, 10, 20, 33]),
        (600, [5, 10, 20, 50, 100, 120]),
    ],
)
def test_subsets_are_at_most_a_fifth_of_the_corpus(samples: int, sizes: list[int]) -> None:
    assert subset_sizes(samples) == sizes
    assert all(5 * size <= samples for size in sizes)


def test_maxima_by_label_and_by_length() -> None:
    amax = np.array([3.0, 5.0, 1.0, 4.0])
    by_domain = maxima_by(amax, ["law", "code", "law", "code"])
    assert {name: (row.samples, row.amax) for name, row in by_domain.items()} == {"code": (2, 5.0), "law": (2, 3.0)}
    by_length = maxima_by_length(amax, np.array([1, 63, 64, 5000], np.int32))
    assert [(first, last, row.samples, row.amax) for first, last, row in by_length] == [
        (1, 63, 2, 5.0),
        (64, 255, 1, 1.0),
        (1024, None, 1, 4.0),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_exceedance_counts_what_lies_beyond_the_calibration_range(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(7, 16, generator=generator).to(dtype) for _ in range(40)]
    calibration, evaluation = tensors[:10], [x * 1.25 for x in tensors[10:]]
    actual = exceedance(accumulate(make_samples(calibration)), accumulate(make_samples(evaluation)))
    limit = torch.stack(calibration).abs().max()
    beyond = torch.stack(evaluation).abs() > limit
    assert actual is not None
    assert actual.calibration_amax == limit.item()
    assert actual.ratio == pytest.approx((torch.stack(evaluation).abs().max() / limit.double()).item())
    assert (actual.samples, actual.samples_beyond) == (30, int(beyond.flatten(1).any(1).sum()))
    assert actual.samples_beyond > 0
    share = beyond.double().mean().item()
    if dtype == torch.float32:  # counted after rounding to bfloat16, which may hide some and invents none
        assert 0 < actual.share_elements <= share
    else:
        assert actual.share_elements == share


def test_a_value_that_only_rounds_beyond_the_range_is_not_beyond() -> None:
    limit, below = 1.0039, 1.0038  # both round to the same bfloat16, above them
    splits = [accumulate(make_samples([torch.full((1, 1), value)])) for value in (limit, below)]
    actual = exceedance(splits[0], splits[1])
    assert actual is not None
    assert (actual.samples_beyond, actual.share_elements) == (0, 0.0)


def test_samples_with_nan_are_left_out() -> None:
    broken = torch.tensor([[1.0], [float("nan")]])
    whole = accumulate(make_samples([broken, torch.tensor([[-2.0]])])).extremes
    assert np.isnan(sample_amax(whole)[0])
    assert finite_amax(whole).tolist() == [2.0]


def test_nothing_is_said_of_empty_or_zero_splits() -> None:
    zeros, ones = (accumulate(make_samples([value])) for value in (torch.zeros(2, 2), torch.ones(2, 2)))
    nans = accumulate(make_samples([torch.full((2, 2), float("nan"))]))
    assert exceedance(zeros, ones) is None
    assert exceedance(nans, ones) is None
    assert exceedance(ones, nans) is None


def test_the_worst_exceedance_comes_first_and_sites_within_range_are_left_out() -> None:
    one, two, three = (accumulate(make_samples([torch.full((2, 2), value)])) for value in (1.0, 2.0, 3.0))
    splits = {"b": (one, two), "a": (one, three), "within": (three, one), "half": (one, None)}
    assert [(name, row.ratio) for name, row in worst_exceedances(splits)] == [("a", 3.0), ("b", 2.0)]
