"""A card's rows against the profile that they come from, computed a second time with NumPy."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from quantaudit.card.build import build_card, site_row
from quantaudit.card.schema import Card, dump_card
from quantaudit.measure.profile import Profile
from quantaudit.policy import load_policy
from quantaudit.stats.distribution import decode


@pytest.fixture(scope="module")
def card(tiny_profile: Profile) -> Card:
    created = datetime(2026, 1, 2, tzinfo=UTC)
    return build_card(tiny_profile, [], None, load_policy(), timings={"measuring": 1.234}, created=created)


def values(profile: Profile, site: str) -> np.ndarray:
    """Every finite element of a site over both splits, float64."""
    whole = profile.whole(site)
    assert whole is not None
    return np.repeat(
        decode(whole.distribution.encoding, whole.distribution.patterns).astype(np.float64), whole.distribution.counts
    )


def test_rows_describe_both_splits_together(card: Card, tiny_profile: Profile) -> None:
    for row in card.sites:
        x = values(tiny_profile, row.name)
        assert (row.min, row.max, row.amax) == (x.min(), x.max(), np.abs(x).max())
        assert row.mean == pytest.approx(x.mean(), rel=1e-9, abs=1e-12)
        assert row.rms == pytest.approx(np.sqrt((x**2).mean()), rel=1e-12)
        assert row.p99 == np.quantile(np.abs(x), 0.99, method="inverted_cdf")
        assert row.tokens * row.channels == len(x)


def test_peaks_are_the_five_highest_and_name_their_sample(card: Card, tiny_profile: Profile) -> None:
    for row in card.sites:
        x = np.sort(np.abs(values(tiny_profile, row.name)))[::-1]
        assert [abs(peak.value or 0.0) for peak in row.peaks] == list(x[:5])
        by_id = {sample.id: sample for sample in tiny_profile.samples}
        assert all(peak.position < by_id[peak.sample].tokens for peak in row.peaks)
        assert all(peak.domain == by_id[peak.sample].domain for peak in row.peaks)


def test_domains_hold_their_own_maxima(card: Card, tiny_profile: Profile) -> None:
    for row in card.sites:
        assert set(row.domains) == {sample.domain for sample in tiny_profile.samples}
        assert max(value or 0.0 for value in row.domains.values()) == row.amax


def test_the_summary_names_the_highest_site_and_the_highest_quantized_one(card: Card) -> None:
    overall = max(card.sites, key=lambda row: row.amax or 0.0)
    inputs = [row for row in card.sites if row.kind == "linear_input"]
    assert card.peak.overall is not None
    assert card.peak.quantized is not None
    assert card.peak.overall.amax == overall.amax
    assert card.peak.quantized.amax == max(row.amax or 0.0 for row in inputs)
    residual = max(row.amax or 0.0 for row in card.sites if row.kind in ("residual", "embedding"))
    assert card.peak.fp16_headroom == pytest.approx(65504 / residual)


def test_a_site_that_never_fired_is_empty_and_says_so(tiny_profile: Profile) -> None:
    site = tiny_profile.sites[0].model_copy(update={"name": "layers.9.output"})
    row = site_row(tiny_profile, site)
    assert (row.amax, row.tokens, row.peaks) == (None, 0, [])


def test_a_card_survives_its_own_json(card: Card) -> None:
    assert Card.model_validate_json(dump_card(card)) == card


def test_only_the_creation_time_and_timings_come_from_outside(card: Card, tiny_profile: Profile) -> None:
    again = build_card(tiny_profile, [], None, load_policy(), timings={})
    outside = {"created": card.created, "environment": card.environment, "seal": card.seal}
    assert again.model_copy(update=outside) == card
