"""What changed, and by how much: against SciPy, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from quantaudit.card.schema import PersistentChannel
from quantaudit.compare.changes import LEVEL, value_change
from quantaudit.compare.subjects.read import read_subjects
from tests.unit.compare.subjects import DYNAMIC, STATIC, a_card, comparison, with_conditions, with_score


@pytest.mark.parametrize(("first", "second", "spread"), [(12, 12, 1.0), (5, 40, 3.0), (200, 150, 0.2), (2, 2, 1.0)])
def test_an_interval_is_welchs(first: int, second: int, spread: float) -> None:
    """The degrees of freedom are rounded down, which widens it by little."""
    random = np.random.default_rng(first)
    one, other = random.normal(1.0, 1.0, first), random.normal(1.5, spread, second)
    interval = stats.ttest_ind(other, one, equal_var=False).confidence_interval(LEVEL)
    errors = [float(row.std(ddof=1) / np.sqrt(len(row))) for row in (one, other)]
    row = value_change((float(one.mean()), errors[0]), (float(other.mean()), errors[1]), (first, second))
    assert row.change == pytest.approx(other.mean() - one.mean())
    assert row.low is not None
    assert row.high is not None
    wider = (row.high - row.low) / (interval.high - interval.low)
    assert 1 - 1e-9 <= wider < (1.1 if first > 4 else 3)
    assert row.low + row.high == pytest.approx(2 * row.change)


@pytest.mark.parametrize(
    ("ours", "theirs", "samples"),
    [((1.0, None), (2.0, 0.1), (9, 9)), ((1.0, 0.1), (2.0, 0.1), (9, 1)), ((1.0, 0.1), (2.0, None), (9, 9))],
)
def test_how_sure_a_change_is_may_not_be_known(
    ours: tuple[float, float | None], theirs: tuple[float, float | None], samples: tuple[int, int]
) -> None:
    row = value_change(ours, theirs, samples)
    assert (row.change, row.low, row.high) == (1.0, None, None)
    assert value_change((None, None), theirs, samples).change is None
    assert value_change((1.0, 0.0), (2.0, 0.0), (9, 9)).low == 1.0


def test_peaks_of_each_kind_stand_next_to_each_other() -> None:
    card = a_card()
    sites = [
        row.model_copy(update={"amax": (row.amax or 0) * 2, "peaks": [], "min": None, "max": None})
        if row.kind == "residual"
        else row
        for row in card.sites
    ]
    rows = {row.kind: row for row in comparison(card, card.model_copy(update={"sites": sites})).changes[0].peaks}
    assert rows["residual"].ratio == 2.0
    assert rows["residual"].moved is False
    assert rows["linear_input"].ratio == 1.0
    assert rows["linear_input"].baseline is not None
    assert rows["linear_input"].baseline.site == "layers.3.mlp.down_proj.input"
    assert rows["linear_input"].baseline.massive == 3


def test_a_kind_that_one_side_lacks_has_no_ratio() -> None:
    from quantaudit.compare.run import compare

    subjects = [*comparison(a_card(), a_card()).subjects[:1], *read_subjects(["published:Ling"])[:1]]
    rows = {row.kind: row for row in compare(subjects).changes[0].peaks}
    assert rows["linear_input"].ratio is None
    assert rows["linear_input"].other is None
    assert rows["residual"].ratio == pytest.approx(7648 / 15168)


def test_schemes_change_by_verdict_kl_and_top1() -> None:
    card = a_card()
    change = comparison(card, with_score(card, kl=1.5, top1=0.5, verdict={"status": "INCONCLUSIVE"})).changes[0]
    rows = {row.scheme: row for row in change.schemes}
    static = rows[STATIC]
    assert (static.baseline_status, static.other_status) == ("NOT READY", "INCONCLUSIVE")
    assert static.kl.change == pytest.approx(1.5 - (static.kl.baseline or 0))
    assert static.top1.other == 0.5
    assert rows[DYNAMIC].kl.change == 0
    assert {row.shares_of for row in change.groups} == {"price"}
    assert all(row.baseline == row.other for row in change.groups)
    assert change.same_weights


def test_channels_are_compared_where_both_streams_are_as_wide() -> None:
    card = a_card()
    assert card.places is not None
    channel = card.places.channels[0]
    others: list[PersistentChannel] = [channel, channel.model_copy(update={"channel": 7})]
    other = with_conditions(card, "places", channels=others)
    row = comparison(card, other).changes[0].channels
    assert row is not None
    assert (row.both, row.new) == ([channel.channel], [7])
    assert row.gone == [item.channel for item in card.places.channels[1:]]
    assert comparison(card, with_conditions(other, "model", hidden_size=64)).changes[0].channels is None
