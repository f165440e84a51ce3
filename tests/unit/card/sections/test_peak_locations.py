"""Where peaks live: planted spikes are found at their tokens and channels, and few tokens are kept apart from many."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from quantaudit.card.sections.peak_locations import (
    is_delimiter,
    is_special,
    persistent_channels,
    place_row,
    places_info,
    token_bound,
)
from quantaudit.measure.profile import Profile
from quantaudit.provenance import SampleInfo
from quantaudit.stats.site import SiteStatistics
from tests.builders import accumulate, provenance, site_info

TEXT = {1: "<|im_start|>", 2: ".", 3: " the", 4: "\n"}


@pytest.mark.parametrize(
    "text", ["<|im_end|>", "<s>", "</s>", "<｜begin▁of▁sentence｜>", "[CLS]", "<start_of_turn>", "<|a|b|>"]
)
def test_control_tokens_are_special(text: str) -> None:
    assert is_special(text)
    assert not is_special(f"x{text}")


@pytest.mark.parametrize("text", ["<div>", "<", "the", "[x]", "", "||"])
def test_other_tokens_are_not_special(text: str) -> None:
    assert not is_special(text)


def test_delimiters_are_punctuation_and_white_space() -> None:
    assert all(is_delimiter(text) for text in (".", "\n", ' "', "::", " ", "。"))
    assert not any(is_delimiter(text) for text in ("", "a.", "7", "$", "漢"))


def residual(layers: list[torch.Tensor], tokens: list[int]) -> tuple[Profile, list[tuple[int, SiteStatistics]]]:
    """One residual site a layer, one sample."""
    names = [f"layers.{i}.output" for i in range(len(layers))]
    statistics = [accumulate([(0, x, np.asarray(tokens, np.int64))]) for x in layers]
    sites = [site_info(name, kind="residual", layer=i, tap="output") for i, name in enumerate(names)]
    samples = [SampleInfo(id="a", domain="d", split="calibration", tokens=len(tokens))]
    profile = Profile(
        provenance=provenance(sites, samples, token_text=TEXT),
        statistics={(name, "calibration"): value for name, value in zip(names, statistics, strict=True)},
    )
    return profile, list(enumerate(statistics))


def planted(position: int, channel: int, value: float, *, tokens: int = 50, width: int = 32) -> torch.Tensor:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(int(value))) * 0.1
    x[position, channel] = value
    return x


def test_shares_count_the_highest_peaks_of_all_tensors_of_a_kind() -> None:
    tokens = [1, 2, 4] + [3] * 47
    x, y = planted(0, 5, 9000.0), planted(1, 6, 8000.0)
    x[2, 5] = 7000.0
    profile, _ = residual([x, y], tokens)
    row = place_row(profile, "residual")
    highest = [whole.peaks for site in profile.sites if (whole := profile.whole(site.name)) is not None]
    value, position, token = (
        np.concatenate([getattr(p, name) for p in highest]) for name in ("value", "position", "token")
    )
    highest = np.argsort(-np.abs(value))[:100]
    assert row is not None
    assert (row.tensors, row.peaks) == (2, 100)
    assert row.first_position == pytest.approx((position[highest] == 0).mean())
    assert row.special_tokens == pytest.approx((token[highest] == 1).mean())
    assert row.delimiters == pytest.approx(np.isin(token[highest], (2, 4)).mean())
    assert min(row.first_position or 0, row.delimiters or 0) > 0
    assert place_row(profile, "gate") is None


def test_a_massive_activation_is_told_from_an_outlier_channel() -> None:
    layers = [planted(0, 5, 3000.0) for _ in range(4)]
    for x in layers:
        x[:, 9] = 40.0
    _, statistics = residual(layers, [3] * 50)
    rows = {row.channel: row for row in persistent_channels(statistics)}
    assert sorted(rows) == [5, 9]
    assert (rows[5].nature, rows[5].layers, rows[5].amax, rows[5].tokens_at_most) == (
        "massive activation",
        4,
        3000.0,
        0.02,
    )
    assert (rows[9].nature, rows[9].tokens_at_most) == ("many tokens", 1.0)


def test_a_lone_high_value_below_the_massive_criterion_is_few_tokens() -> None:
    _, statistics = residual([planted(3, 5, 50.0)] * 2, [3] * 50)
    assert [(row.channel, row.nature) for row in persistent_channels(statistics)] == [(5, "few tokens")]


def test_massive_is_told_by_the_median_of_the_peaks_own_token() -> None:
    """The tensor's median is 0.07; that of the token at the peak is 5, and 3,000 is no thousandfold of it."""
    layers = [planted(0, 5, 3000.0) for _ in range(2)]
    for x in layers:
        x[0] = 5.0
        x[0, 5] = 3000.0
    _, statistics = residual(layers, [3] * 50)
    rows = {row.channel: row.nature for row in persistent_channels(statistics)}
    assert rows[5] == "few tokens"


def test_a_channel_has_to_persist() -> None:
    _, statistics = residual([planted(0, 5, 3000.0), *[planted(0, 5, 0.1) for _ in range(3)]], [3] * 50)
    assert persistent_channels(statistics) == []
    assert persistent_channels([]) == []


def test_the_bound_is_never_below_the_truth() -> None:
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    statistics = accumulate([(0, x, np.zeros(200, np.int64))])
    for channel, amax in enumerate(statistics.channel_amax):
        truth = (x[:, channel].abs() >= amax / 2).double().mean().item()
        assert token_bound(statistics, float(amax)) >= truth


def test_the_tiny_models_places_cover_its_kinds(tiny_profile: Profile) -> None:
    info = places_info(tiny_profile)
    assert [row.kind for row in info.kinds] == list(dict.fromkeys(site.kind for site in tiny_profile.sites))
    assert info.layers == 3
    assert all(0 <= share <= 1 for row in info.kinds for share in (row.first_position or 0, row.delimiters or 0))
