"""`--fail-on`: beyond, within, or not decided, and never within where something is not known."""

from __future__ import annotations

from typing import Any

import pytest

from quantaudit.card.schema import Card, VerdictLimits
from quantaudit.compare.limits import parse_limit
from quantaudit.errors import UsageError
from tests.unit.compare.subjects import DYNAMIC, a_card, comparison, with_conditions, with_score

SURE = {"kl": 0.05, "kl_stderr": 1e-4, "top1": 0.9, "top1_stderr": 1e-4, "domains": {}}


def outcome(limit: str, baseline: Card, other: Card) -> str:
    decision = comparison(baseline, other, limits=(limit,)).decisions[0]
    assert decision.reason
    return decision.outcome


@pytest.mark.parametrize(
    "text",
    ["", "kl", "verdict=1", "kl=", "kl=x", "kl=nan", "kl=inf", "kl=-1", "top1=2", "peak=0.5", "peak", "price=1", "=1"],
)
def test_a_limit_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--fail-on"):
        parse_limit(text)


@pytest.mark.parametrize("text", ["verdict", "kl=0.01", "kl=0", "top1=0.02", "peak=1.5"])
def test_a_limit_is_shown_as_it_was_given(text: str) -> None:
    assert parse_limit(text).text == text


@pytest.mark.parametrize(
    ("limit", "changed", "expected"),
    [
        ("kl=0.01", {}, "pass"),
        ("kl=0.01", {"kl": 0.2}, "fail"),
        ("kl=0.2", {"kl": 0.2}, "pass"),
        ("kl=0.01", {"kl": 0.06, "kl_stderr": 0.01}, "inconclusive"),
        ("kl=0.01", {"kl": 0.04}, "pass"),
        ("kl=0.01", {"kl": 0.2, "kl_stderr": None}, "inconclusive"),
        ("kl=0.01", {"kl": None, "top1": None}, "inconclusive"),
        ("kl=0.01", {"kl": None, "nonfinite": True}, "fail"),
        ("kl=0.01", {"nonfinite": True}, "inconclusive"),
        ("top1=0.02", {"top1": 0.8}, "fail"),
        ("top1=0.02", {"top1": 0.89}, "pass"),
        ("top1=0.02", {"top1": 0.95}, "pass"),
        ("top1=0.02", {"top1": 0.87, "top1_stderr": 0.1}, "inconclusive"),
    ],
)
def test_scores_are_decided_by_the_interval_of_their_change(limit: str, changed: dict[str, Any], expected: str) -> None:
    assert outcome(limit, dynamic_alone(), dynamic_alone(**changed)) == expected


def dynamic_alone(**numbers: Any) -> Card:
    """A card of one scheme, so that it alone decides. Its text is redacted: of its domains nothing is known."""
    card = with_conditions(a_card(), "corpus", redacted=True)
    assert card.simulation is not None
    simulation, verdicts = card.simulation, card.verdict.schemes
    card = with_conditions(
        card,
        "simulation",
        schemes=[row for row in simulation.schemes if row.name == DYNAMIC],
        groups=[row for row in simulation.groups if row.scheme == DYNAMIC],
        recipes=[row for row in simulation.recipes if row.name == DYNAMIC],
    )
    card = with_conditions(card, "verdict", schemes=[row for row in verdicts if row.scheme == DYNAMIC])
    return with_score(card, DYNAMIC, verdict={"status": "INCONCLUSIVE"}, **SURE | numbers)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("READY", "READY", "pass"),
        ("READY", "READY WITH CARE", "fail"),
        ("READY WITH CARE", "NOT READY", "fail"),
        ("READY WITH CARE", "READY", "pass"),
        ("READY", "INCONCLUSIVE", "inconclusive"),
        ("INCONCLUSIVE", "NOT READY", "inconclusive"),
        ("INCONCLUSIVE", "READY", "pass"),
        ("NOT READY", "INCONCLUSIVE", "pass"),
    ],
)
def test_a_verdict_gets_worse_by_its_order(before: str, after: str, expected: str) -> None:
    card = with_conditions(a_card(), "verdict", limits=VerdictLimits(kl=[], top1=[]))
    sides = [with_score(card, DYNAMIC, verdict={"status": status}) for status in (before, after)]
    assert outcome("verdict", *sides) == expected


def scaled(card: Card, kind: str, factor: float, changed: dict[str, Any]) -> Card:
    rows = [
        row.model_copy(update={"amax": (row.amax or 0) * factor, "peaks": []} | changed) if row.kind == kind else row
        for row in card.sites
    ]
    return card.model_copy(update={"sites": rows})


@pytest.mark.parametrize(
    ("kind", "factor", "changed", "expected"),
    [
        ("residual", 1.0, {}, "pass"),
        ("residual", 1.6, {}, "fail"),
        ("linear_input", 1.6, {}, "fail"),
        ("linear_input", 0.1, {}, "pass"),
        ("mlp_output", 9.0, {}, "pass"),
        ("residual", 1.0, {"nonfinite": 3}, "fail"),
        ("residual", 1.0, {"amax": None}, "inconclusive"),
        ("residual", 1.0, {"kind": "other"}, "inconclusive"),
    ],
)
def test_peaks_are_decided_for_the_stream_and_the_inputs_of_linears(
    kind: str, factor: float, changed: dict[str, Any], expected: str
) -> None:
    card = a_card()
    assert outcome("peak=1.5", card, scaled(card, kind, factor, changed)) == expected


def test_what_cannot_be_compared_is_not_decided() -> None:
    card = a_card()
    for limit in ("kl=100", "peak=100", "verdict"):
        assert outcome(limit, card, with_conditions(card, "corpus", sha256="0" * 64)) == "inconclusive"
    assert outcome("verdict", card, with_conditions(card, "verdict", policy="strict")) == "inconclusive"
    assert outcome("kl=100", card, with_conditions(card, "verdict", policy="strict")) == "pass"
    nothing = a_card(simulation=None, verdict=card.verdict.model_copy(update={"schemes": []}))
    assert outcome("kl=100", nothing, card) == "inconclusive"
    assert outcome("kl=100", card, nothing) == "inconclusive"
    fewer = with_conditions(card, "coverage", linears_measured=card.coverage.linears_measured - 1)
    assert outcome("peak=100", card, fewer) == "inconclusive"


def test_one_limit_that_is_passed_is_enough() -> None:
    card = a_card()
    worse = scaled(card, "residual", 3.0, {})
    row = comparison(card, card, worse, limits=("peak=1.5", "kl=100"))
    assert [item.outcome for item in row.decisions] == ["pass", "pass", "fail", "pass"]
    assert (row.outcome, row.exit_code) == ("fail", 1)
    assert comparison(card, worse).exit_code == 0


def test_what_did_not_change_falls_by_nothing() -> None:
    same = comparison(a_card(), a_card(), limits=("top1=0",)).decisions[0]
    assert same.outcome == "pass"
    assert "top-1 falls by 0%" in same.reason


@pytest.mark.parametrize(
    ("limit", "numbers", "said"),
    [
        ("kl=0.01", {"kl": 0.2}, "KL rises by 0.15"),
        ("kl=0.01", {"kl": 0.04}, "KL falls by 0.01"),
        ("top1=0.02", {"top1": 0.8}, "top-1 falls by 10.0%"),
        ("top1=0.02", {"top1": 0.95}, "top-1 rises by 5.0%"),
    ],
)
def test_a_change_is_named_by_where_it_goes(limit: str, numbers: dict[str, Any], said: str) -> None:
    reason = comparison(dynamic_alone(), dynamic_alone(**numbers), limits=(limit,)).decisions[0].reason
    assert said in reason
    assert "-" not in reason.replace("top-1", "").partition("by")[2]
