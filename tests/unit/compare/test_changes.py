"""What changed, and by how much."""

from __future__ import annotations

import pytest

from quantaudit.card.schema import PersistentChannel
from quantaudit.compare.changes import steps_worse
from quantaudit.compare.subjects.read import read_subjects
from tests.unit.compare.subjects import DYNAMIC, STATIC, a_card, comparison, with_conditions, with_score


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


def test_verdicts_have_an_order_in_which_what_is_not_decided_has_no_place() -> None:
    assert steps_worse("READY", "NOT READY") == 2
    assert steps_worse("NOT READY", "READY WITH CARE") == -1
    assert steps_worse("READY", "INCONCLUSIVE") is None
    assert steps_worse(None, "READY") is None
