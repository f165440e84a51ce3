"""The kept peaks are the highest hundred of a full sort, wherever and in whatever order they came."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from quantaudit.stats.peaks import KEPT, floor
from tests.builders import Sample, accumulate, make_samples
from tests.plain_statistics import candidate_channels
from tests.unit.stats.strategies import sample_lists

Peak = tuple[float, int, int, int, int]


def brute_force(samples: list[Sample]) -> list[Peak]:
    """All non-zero elements of channels that are finite throughout a sample, fully sorted, the first hundred."""
    actual: list[tuple[float, int, int, int, float, int]] = []
    for index, x_TC, tokens_T in samples:
        values = x_TC.double().numpy()
        for channel in range(values.shape[1]):
            if np.isfinite(values[:, channel]).all():
                actual += [
                    (-abs(value), index, position, channel, value, int(tokens_T[position]))
                    for position, value in enumerate(values[:, channel].tolist())
                    if value != 0
                ]
    actual.sort()
    return [(value, index, position, token, channel) for _, index, position, channel, value, token in actual[:KEPT]]


def kept(samples: list[Sample]) -> list[Peak]:
    p = accumulate(samples).peaks
    columns = (p.value, p.sample, p.position, p.token, p.channel)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


CASES = {
    "many channels": [normal(6, 700, seed=i) for i in range(4)],
    "few channels": [normal(80, 3, seed=i) for i in range(4)],
    "one channel": [normal(300, 1), normal(7, 1, seed=1)],
    "a channel far above the others": [normal(60, 4) * torch.tensor([100.0, 1, 1, 1]).bfloat16()],
    "exactly a hundred channels": [normal(5, 100, seed=3)],
    "a hundred and one channels": [normal(5, 101, seed=4)],
    "ties everywhere": [normal(40, 9, seed=i).sign() for i in range(3)],
    "constant": [torch.full((30, 20), -2.5).bfloat16(), torch.full((3, 20), 2.5).bfloat16()],
    "zeros": [torch.zeros(30, 20).bfloat16()],
    "fewer than a hundred elements": [normal(4, 5)],
    "fewer than a hundred non-zero elements": [normal(40, 30) * (normal(40, 30, seed=9) > 2.3)],
    "one massive token": [torch.cat([normal(1, 256) * 1000, normal(50, 256, seed=1)]), normal(50, 256, seed=2)],
    "float32": [normal(50, 64, dtype=torch.float32), normal(20, 64, seed=1, dtype=torch.float32)],
    "float16 with zeros": [normal(10, 5, dtype=torch.float16).relu(), torch.zeros(10, 5).half()],
    "float16 subnormals": [(normal(10, 5) * 1e-6).half()],
    "bfloat16 subnormals": [(normal(10, 5, dtype=torch.float32) * 1e-39).bfloat16()],
    "rising": [torch.full((4, 60), float(i)).bfloat16() for i in range(1, 8)],
}


@pytest.mark.parametrize("case", CASES)
def test_peaks_are_the_first_hundred_of_a_full_sort(case: str) -> None:
    samples = make_samples(CASES[case])
    assert kept(samples) == brute_force(samples)


@given(sample_lists())
@settings(max_examples=80)
def test_peaks_are_the_first_hundred_of_a_full_sort_for_any_bit_patterns(samples: list[Sample]) -> None:
    assert kept(samples) == brute_force(samples)


@given(sample_lists(channels=60))
@settings(max_examples=25)
def test_peaks_of_wider_tensors_too(samples: list[Sample]) -> None:
    assert kept(samples) == brute_force(samples)


def test_a_channel_with_a_non_finite_value_gives_no_peaks_in_that_sample_only() -> None:
    bad = torch.tensor([[9.0, 1.0], [math.nan, 2.0], [math.inf, 3.0]]).bfloat16()
    good = torch.tensor([[7.0, 0.5]]).bfloat16()
    assert [value for value, *_ in kept(make_samples([bad, good]))] == [7.0, 3.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize("case", CASES)
def test_every_peak_has_the_median_of_its_own_token(case: str) -> None:
    samples = make_samples(CASES[case])
    p = accumulate(samples).peaks
    for sample, position, median in zip(p.sample, p.position, p.median, strict=True):
        row = np.abs(samples[sample][1][position].float().numpy())
        assert median == np.quantile(row, 0.5, method="inverted_cdf")


@given(sample_lists())
def test_medians_of_any_bit_patterns_are_of_the_finite_values(samples: list[Sample]) -> None:
    p = accumulate(samples).peaks
    for sample, position, median in zip(p.sample, p.position, p.median, strict=True):
        row = samples[sample][1][position].float().numpy()
        assert median == np.quantile(np.abs(row[np.isfinite(row)]), 0.5, method="inverted_cdf")


def test_the_floor_is_zero_while_there_is_room() -> None:
    assert floor(accumulate(make_samples([normal(9, 11)])).peaks) == 0.0
    full = accumulate(make_samples([normal(10, 10)])).peaks
    assert floor(full) == float(np.abs(full.value).min()) > 0


@pytest.mark.parametrize("width", [1, 50, 99, 100, 101, 300, 2000])
@pytest.mark.parametrize("rank", [0.0, 0.5, 0.98])
@pytest.mark.parametrize("steps", [3, 1000])
def test_candidate_channels_never_lose_a_peak(width: int, rank: float, steps: int) -> None:
    """Every element that a full sort would keep lies in a candidate channel, whatever the floor already is."""
    x = (normal(12, width, seed=width, dtype=torch.float32) * steps).round() / steps
    magnitude = x.abs().numpy()
    lowest = float(np.quantile(magnitude, rank, method="inverted_cdf"))
    candidates = set(candidate_channels(magnitude.max(0), lowest).tolist())
    entering = np.sort(magnitude[(magnitude >= lowest) & (magnitude > 0)])[::-1]
    cut = entering[min(len(entering), KEPT) - 1]
    # With ties at the cut the order is by position first, so all of the tied channels may be needed.
    needed = set(np.flatnonzero((magnitude >= cut).any(0)).tolist())
    assert needed <= candidates
