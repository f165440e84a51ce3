"""A card's derived data is computed once, however many pages and charts read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.charts import draw
from quantaudit.card.render import write_card
from quantaudit.card.views import coverage, experts, groups, landscape, peaks, provenance, schemes
from quantaudit.card.views.card_view import CardView
from tests.card_factory import make_card

DERIVATIONS: tuple[tuple[Any, str], ...] = (
    (coverage, "unmeasured_lines"),
    (experts, "expert_lines"),
    (groups, "causes"),
    (groups, "group_lines"),
    (groups, "projections"),
    (groups, "tensor_errors"),
    (groups, "worst_granularities"),
    (landscape, "landscape_lines"),
    (peaks, "stable_peaks"),
    (peaks, "undrawn_sites"),
    (provenance, "provenance_lines"),
    (schemes, "first_dynamic"),
    (schemes, "first_static"),
    (schemes, "titles"),
)


def test_one_write_derives_each_part_and_draws_each_chart_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: Counter[str] = Counter()

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            calls[name] += 1
            return function(*given, **named)

        return call

    for module, name in DERIVATIONS:
        monkeypatch.setattr(module, name, counting(name, getattr(module, name)))
    for name, chart in draw.CHARTS.items():
        monkeypatch.setitem(draw.CHARTS, name, counting(name, chart))
    write_card(make_card(), tmp_path)
    # Experts and what depends on them alone are asked for only where a card has them.
    expected = {name for _, name in DERIVATIONS} - {"expert_lines"} | set(draw.CHARTS)
    assert calls == dict.fromkeys(expected, 1)


def test_a_view_keeps_what_it_derived() -> None:
    view = CardView(make_card())
    assert view.groups is view.groups
    assert view.groups_by_layer[0].layer == 0
    assert {line.group for line in view.groups} - {line.group for line in view.groups_by_layer} == {"lm_head"}
    assert [line.group for line in view.singles] == []


def test_findings_are_split_by_severity() -> None:
    card = make_card()
    view = CardView(card)
    assert [row.severity for row in view.serious] == ["error", "warning", "warning"]
    assert [row.severity for row in view.remarks] == ["info"]
    assert len(view.serious) + len(view.remarks) == len(card.findings)
