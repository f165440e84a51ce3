"""Why one scale is too coarse, as a chart and a sentence: the worst groups, their three errors, and the cause."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantaudit.card.charts import error_by_granularity
from quantaudit.card.charts.draw import specifications
from quantaudit.card.schema import Card
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.groups import GRANULARITIES_SHOWN
from quantaudit.simulate.records import Cause, GranularityRow
from tests.card_factory import STATIC, make_card


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


def with_rows(card: Card, rows: list[GranularityRow]) -> Card:
    assert card.simulation is not None
    return card.model_copy(update={"simulation": card.simulation.model_copy(update={"granularity": rows})})


def row(group: str, cause: Cause, *errors: float | None) -> GranularityRow:
    return GranularityRow(
        group=group, layer=0, per_tensor=errors[0], per_token=errors[1], per_channel=errors[2], cause=cause
    )


def ranked(card: Card) -> list[str]:
    """Groups by static damage, from the rows themselves."""
    assert card.simulation is not None
    rows = [row for row in card.simulation.groups if row.scheme == STATIC and row.damage]
    return [row.group for row in sorted(rows, key=lambda row: -(row.damage or 0.0))]


def test_the_most_damaging_groups_are_shown_worst_first(card: Card) -> None:
    assert [row.group for row in CardView(card).granularities] == ranked(card)[:GRANULARITIES_SHOWN]


def test_every_error_of_a_shown_group_is_a_point(card: Card) -> None:
    groups = ranked(card)[:3]
    rows = [
        row(groups[2], "neither", 0.001, 0.0009, 0.0008),
        row(groups[0], "massive token", 0.9941, 0.000619, 0.00641),
        row(groups[1], "outlier channel", 0.03, 0.0, 0.0001),
        row("not.simulated", "either", 1.0, 0.1, 0.1),
        row(ranked(card)[3], "either", None, 0.1, 0.1),
    ]
    points = error_by_granularity.data(CardView(with_rows(card, rows)))
    assert [(p["group"], p["scales"], p["error"]) for p in points] == [
        (groups[0], "one scale", 0.9941),
        (groups[0], "one per token", 0.000619),
        (groups[0], "one per channel", 0.00641),
        (groups[1], "one scale", 0.03),
        (groups[1], "one per channel", 0.0001),  # a logarithmic axis holds no zero
        (groups[2], "one scale", 0.001),
        (groups[2], "one per token", 0.0009),
        (groups[2], "one per channel", 0.0008),
    ]
    assert [p["error_text"] for p in points[:3]] == ["99.4%", "0.0619%", "0.641%"]
    lines = list(dict.fromkeys(p["line"] for p in points))
    assert [line.split("\n")[1:] for line in lines] == [["massive token"], ["outlier channel"], []]


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("massive token", "a massive token sets the one scale"),
        ("outlier channel", "an outlier channel sets the one scale"),
        ("either", "finer scales of either kind help"),
        ("neither", "finer scales would not help much"),
    ],
)
def test_the_sentence_names_errors_and_causes(card: Card, cause: Cause, words: str) -> None:
    first, second = ranked(card)[:2]
    rows = [row(first, cause, 0.9941, 0.000619, 0.5), row(second, "massive token", 1, 0, 0)]
    text = error_by_granularity.reading(CardView(with_rows(card, rows)))
    assert f"loses 99.4% of the energy of {first}’s input" in text
    assert "each token 0.0619% and one for each channel 50.0%" in text
    assert f": {words}. Among the 2 worst groups" in text
    assert ("a massive token in 2." in text) == (cause == "massive token")


def test_lines_of_groups_with_one_short_name_stay_apart(card: Card) -> None:
    assert card.simulation is not None
    clash = [
        row.model_copy(update={"layer": 7, "projection": "proj"}) if row.layer is not None else row
        for row in card.simulation.groups
    ]
    rows = [row.model_copy(update={"layer": 7}) for row in card.simulation.granularity]
    changed = card.model_copy(
        update={"simulation": card.simulation.model_copy(update={"groups": clash, "granularity": rows})}
    )
    lines = error_by_granularity.labels(CardView(changed))
    assert len(set(lines.values())) == len(lines) == GRANULARITIES_SHOWN
    assert all(line.split("\n")[0] == group for group, line in lines.items())


def test_the_chart_has_a_line_for_each_group_and_a_symbol_for_each_granularity(card: Card) -> None:
    spec: dict[str, Any] = specifications(CardView(card))["error_by_granularity"]
    spans, marks = spec["layer"]
    assert marks["encoding"]["color"]["scale"]["domain"] == list(error_by_granularity.SCALES.values())
    assert len(set(marks["encoding"]["shape"]["scale"]["range"])) == len(error_by_granularity.SCALES)
    assert spans["encoding"]["y"]["sort"] == list(error_by_granularity.labels(CardView(card)).values())
    assert spec["description"] == error_by_granularity.reading(CardView(card))
    low, high = marks["encoding"]["x"]["scale"]["domain"]
    errors = [point["error"] for point in error_by_granularity.data(CardView(card))]
    assert low < min(errors) <= max(errors) < high


def test_without_a_comparison_there_is_neither_chart_nor_sentence(card: Card) -> None:
    bare = with_rows(card, [])
    assert "error_by_granularity" not in specifications(CardView(bare))
    assert error_by_granularity.reading(CardView(bare)) == ""
    assert error_by_granularity.reading(CardView(card.model_copy(update={"simulation": None}))) == ""
    silent = with_rows(card, [row(ranked(card)[0], "neither", 0.0, 0.0, 0.0)])
    assert "error_by_granularity" not in specifications(CardView(silent))
    assert "NaN" not in json.dumps(specifications(CardView(card))["error_by_granularity"])
