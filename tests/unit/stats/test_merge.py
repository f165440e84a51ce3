"""Merging is associative and commutative and has an identity: shards and resumed runs add up in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from quantaudit.stats import channels, distribution, extremes, peaks, site
from quantaudit.stats.site import SiteStatistics
from tests.builders import differences
from tests.rows import from_rows
from tests.unit.stats.strategies import statistics_triples

Triple = tuple[SiteStatistics, SiteStatistics, SiteStatistics]
Merge = Callable[[Any, Any], Any]

LAYERS: dict[str, tuple[Callable[[SiteStatistics], Any], Merge, Callable[[SiteStatistics], Any]]] = {
    "distribution": (
        lambda s: s.distribution, distribution.merge, lambda s: distribution.zero(s.distribution.encoding)
    ),
    "extremes": (lambda s: s.extremes, extremes.merge, lambda s: extremes.zero()),
    "channels": (lambda s: s.channel_amax, channels.merge, lambda s: channels.zero()),
    "peaks": (lambda s: s.peaks, peaks.merge, lambda s: peaks.zero()),
    "site": (lambda s: s, site.merge, lambda s: site.zero(s.distribution.encoding)),
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS)
@given(triple=statistics_triples())
def test_merge_is_associative(layer: str, triple: Triple) -> None:
    part, merge, _ = LAYERS[layer]
    a, b, c = (part(value) for value in triple)
    assert differences(merge(merge(a, b), c), merge(a, merge(b, c))) == []


@pytest.mark.parametrize("layer", LAYERS)
@given(triple=statistics_triples())
def test_merge_is_commutative(layer: str, triple: Triple) -> None:
    part, merge, _ = LAYERS[layer]
    a, b, _ = (part(value) for value in triple)
    assert differences(merge(a, b), merge(b, a)) == []


@pytest.mark.parametrize("layer", LAYERS)
@given(triple=statistics_triples())
def test_zero_is_the_identity_of_merge_on_both_sides(layer: str, triple: Triple) -> None:
    part, merge, zero = LAYERS[layer]
    a = part(triple[0])
    assert differences(merge(a, zero(triple[0])), a) == []
    assert differences(merge(zero(triple[0]), a), a) == []


@pytest.mark.parametrize("layer", LAYERS)
@given(triple=statistics_triples())
def test_merge_changes_neither_argument(layer: str, triple: Triple) -> None:
    part, merge, _ = LAYERS[layer]
    a, b, _ = (part(value) for value in triple)
    before = [{name: np.copy(array) for name, array in _arrays(value).items()} for value in (a, b)]
    merge(a, b)
    for value, copies in zip((a, b), before, strict=True):
        for name, array in _arrays(value).items():
            np.testing.assert_array_equal(array, copies[name])


def test_channels_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="3 channels"):
        channels.merge(np.ones(3, np.float32), np.ones(4, np.float32))


def test_a_channel_that_held_a_nan_stays_nan() -> None:
    broken, whole = np.array([np.nan, 1], np.float32), np.array([5, 2], np.float32)
    np.testing.assert_array_equal(channels.merge(broken, whole), np.array([np.nan, 2], np.float32))
    np.testing.assert_array_equal(channels.merge(whole, broken), np.array([np.nan, 2], np.float32))


def test_a_sample_met_in_two_shards_is_one_row() -> None:
    a = from_rows([(4, 3, -1.0, 2.0), (1, 2, 0.0, 1.0)])
    b = from_rows([(4, 5, -7.0, 1.0)])
    merged = extremes.merge(a, b)
    assert merged.sample.tolist() == [1, 4]
    assert merged.tokens.tolist() == [2, 8]
    assert merged.min.tolist() == [0.0, -7.0]
    assert merged.max.tolist() == [1.0, 2.0]


def _arrays(value: Any) -> dict[str, Any]:
    from tests.builders import parts

    return parts(value)
