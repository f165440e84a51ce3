"""The page's frontier: the solver's own points, an advised recipe within the limit, and nothing without prices."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantaudit.card.charts.choices import frontier as frontier_chart
from quantaudit.card.charts.draw import specification
from quantaudit.card.render import render_html
from quantaudit.card.schema import Card, VerdictLimits
from quantaudit.card.vega.image import svg
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.frontier import MOST_POINTS, Frontier
from quantaudit.simulate.allocation import Limit, frontier, menu_of, size_of_bits, solve
from quantaudit.simulate.allocation.plain import solve_plainly
from tests.unit.simulate.allocation.test_solve import priced


def limited(*limits: float | None, **changes: Any) -> Card:
    """A priced card under a policy with these limits of KL."""
    card = priced(**changes)
    held = VerdictLimits(kl=list(limits), top1=[0.9, 0.8], level=0.95)
    return card.model_copy(update={"verdict": card.verdict.model_copy(update={"limits": held})})


def shown(card: Card) -> Frontier:
    found = CardView(card).frontier
    assert found is not None
    return found


def test_the_advised_recipe_is_the_smallest_within_the_limit_and_what_its_command_writes() -> None:
    card = limited(0.02, 0.2)
    assert card.simulation is not None
    menu = menu_of(card.simulation, card.model)
    found = shown(card)
    assert found.advised is not None
    point, words = found.advised.point, found.advised.command.split()
    bits = float(words[words.index("--max-bits") + 1])
    assert solve_plainly(menu, Limit(max_size=size_of_bits(menu, bits)))[1] == point
    reached = point.kl if menu.factor is None else point.kl_high
    assert reached is not None
    assert reached <= 0.02
    smaller = solve(menu, Limit(max_size=size_of_bits(menu, bits - 0.02)))
    assert (smaller.kl if menu.factor is None else smaller.kl_high or 0) > 0.02
    assert f"whose estimated KL is READY takes {point.bits:.3g} bits" in found.reading
    assert sum(scheme is None for scheme in point.schemes.values()) < len(point.schemes)


def test_groups_stay_unquantized_for_a_limit_that_schemes_alone_do_not_reach() -> None:
    card = limited(0.0008, 0.2)
    found = shown(card)
    assert found.advised is not None
    assert found.advised.status == "READY"
    assert found.advised.command.endswith("--unquantized --out recipe.yaml")
    unquantized = sum(scheme is None for scheme in found.advised.point.schemes.values())
    assert 0 < unquantized < len(found.advised.point.schemes)
    assert found.line[-1].kl == 0
    assert "; " in found.reading
    assert " unquantized" in found.reading


def test_the_next_limit_is_taken_where_the_first_is_out_of_reach() -> None:
    # That nothing is quantized is no advice.
    assert shown(limited(1e-9, 0.2)).advised.status == "READY WITH CARE"  # type: ignore[union-attr]
    none = shown(limited(1e-9, 1e-8))
    assert none.advised is None
    assert none.reading == "No mixture is within the policy’s limits of KL by estimate."
    free = shown(limited(None, None))
    assert (free.limits, free.advised, free.reading) == ((), None, "The policy has no limit of KL.")


def test_points_are_the_solvers() -> None:
    card = limited(0.02, 0.2)
    assert card.simulation is not None
    found, points = shown(card), frontier(menu_of(card.simulation, card.model))
    assert len(points) <= MOST_POINTS
    assert found.line == points
    assert {title for title, _ in found.uniform} == {"int8_weights", "int4_weights", "nvfp4"}
    assert {title: point.source for title, point in found.uniform}["nvfp4"] == "measured"


def test_a_line_of_many_points_keeps_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantaudit.card.views.frontier.MOST_POINTS", 5)
    card = limited(0.02, 0.2)
    assert card.simulation is not None
    points = frontier(menu_of(card.simulation, card.model))
    line = shown(card).line
    assert len(line) == 5
    assert (line[0], line[-1]) == (points[0], points[-1])


@pytest.mark.parametrize("limits", [(0.02, 0.2), (None, None)])
def test_the_chart_shows_schemes_limits_and_the_choice(limits: tuple[float | None, float | None]) -> None:
    view = CardView(limited(*limits))
    chart = frontier_chart.chart(view)
    assert chart is not None
    drawn = svg(specification(chart))
    assert "NaN" not in drawn
    for label in ("READY up to 0.02", "READY WITH CARE up to 0.2", "advised, "):
        assert (label in drawn) == (limits[0] is not None)
    rows = json.dumps(specification(chart))
    assert all(f'"{name}"' in rows for name in ("int8_weights", "int4_weights", "nvfp4"))


def test_nothing_is_shown_without_prices_or_shapes() -> None:
    card = priced()
    assert CardView(card.model_copy(update={"model": card.model.model_copy(update={"modules": []})})).frontier is None
    assert card.simulation is not None
    rows = [row.model_copy(update={"price": None}) for row in card.simulation.groups]
    bare = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": rows}), "advice": []})
    assert CardView(bare).frontier is None
    assert frontier_chart.chart(CardView(bare)) is None
    assert 'id="frontier"' not in render_html(bare)
    assert CardView(card.model_copy(update={"simulation": None})).frontier is None
