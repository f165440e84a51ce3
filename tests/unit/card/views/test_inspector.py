"""What a page shows of one group: the card's own numbers, in sentences that stay short whatever names say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from quantaudit.card.charts import distribution, theme
from quantaudit.card.charts.draw import specification
from quantaudit.card.render import render_html
from quantaudit.card.schema import Card
from quantaudit.card.vega.image import svg
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.inspector import Inspection, inspections, packed
from quantaudit.simulate.records import GroupRow, Simulation
from tests.card_factory import DYNAMIC, STATIC, make_card
from tests.unit.card.test_render import poison

LAYERS = 4
WORST = "layers.3.mlp.down_proj"


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(LAYERS)


def simulation_of(card: Card) -> Simulation:
    assert card.simulation is not None
    return card.simulation


def changed(card: Card, **parts: Any) -> CardView:
    return CardView(card.model_copy(update={"simulation": simulation_of(card).model_copy(update=parts)}))


def opened(view: CardView, group: str = WORST) -> Inspection:
    return next(row for row in inspections(view) if row.name == group)


def rows_of(card: Card, group: str = WORST) -> dict[str, GroupRow]:
    return {row.scheme: row for row in simulation_of(card).groups if row.group == group}


def test_groups_come_in_the_order_of_the_tables(card: Card) -> None:
    view = CardView(card)
    assert [row.name for row in inspections(view)] == [line.group for line in view.groups]


def test_the_sentences_hold_the_cards_numbers(card: Card) -> None:
    prices = [row.price or 0.0 for row in simulation_of(card).groups if row.scheme == STATIC]
    cost, remedy, scale, peak, finer = opened(CardView(card)).facts
    share = (rows_of(card)[STATIC].price or 0) / sum(prices)
    assert f"{share:.1%} of what all groups cost; rank 1 of {4 * LAYERS + 1}." in cost
    assert "INT8 dynamic per token (0.00" in remedy
    assert "or leave it unquantized" in remedy
    assert "reaches 3,020 in steps of 23.6: whatever is below 11.8 becomes 0" in scale
    assert "channel" in peak
    assert "In INT8 one scale loses" in finer


def test_a_group_that_costs_less_than_the_mean_needs_nothing(card: Card) -> None:
    view = CardView(card)
    assert opened(view, view.groups[-2].group).facts[1].startswith("Nothing here")


def test_a_remedy_is_a_scheme_that_leaves_a_quarter_at_most(card: Card) -> None:
    own = rows_of(card)[STATIC].price or 0.0

    def at(share: float) -> str:
        rows = [
            row.model_copy(update={"price": own * share}) if (row.group, row.scheme) == (WORST, DYNAMIC) else row
            for row in simulation_of(card).groups
        ]
        return opened(changed(card, groups=rows)).facts[1]

    assert "INT8 dynamic per token" in at(0.24)
    assert at(0.26) == "Leave it unquantized: no scheme that was tried costs much less here."


def test_damage_ranks_where_nothing_has_a_price(card: Card) -> None:
    rows = [row.model_copy(update={"price": None}) for row in simulation_of(card).groups]
    cost = opened(changed(card, groups=rows)).facts[0]
    assert "block damage under INT8 static per tensor" in cost


def test_the_tables_hold_every_observer_and_scheme(card: Card) -> None:
    row = next(error for error in simulation_of(card).sites if error.group == WORST)
    clipped = row.model_copy(update={"observer": "percentile_99.9", "scale": 0.5, "zeroed_fraction": 0.25})
    fp8 = row.model_copy(update={"scheme": "fp8_e4m3_static_per_tensor", "scale": 2.0})
    other = fp8.model_copy(update={"observer": "mse"})
    shown = opened(changed(card, sites=[*simulation_of(card).sites, clipped, fp8, other]))
    names = ["largest value (static_minmax)", "99.9% of the values", "FP8 E4M3 static per tensor"]
    assert [line[0] for line in shown.clips] == names
    assert shown.clips[1][1:4] == ("64.0", "0.500", "25.0%")
    assert shown.clips[2][1] == "896"
    assert [line[0] for line in shown.costs] == ["INT8 static per tensor", "INT8 dynamic per token"]


def test_what_lies_beyond_the_scale_is_said_to_be_clipped(card: Card) -> None:
    sites = [row.model_copy(update={"scale": (row.scale or 0) / 2}) for row in simulation_of(card).sites]
    assert "is clipped" in opened(changed(card, sites=sites)).facts[2]
    assert "is clipped" not in opened(CardView(card)).facts[2]


def test_the_chart_is_drawn_from_the_tensors_row(card: Card) -> None:
    tensor = opened(CardView(card)).tensor
    assert tensor is not None
    assert (tensor["zeroed"], tensor["largest"], tensor["step"]) == pytest.approx((11.796, 3019.8, 23.592), rel=1e-4)
    chart = distribution.chart(CardView(card))
    assert chart is not None
    spec = specification(chart) | {"datasets": {distribution.DATA: [tensor]}}
    drawn = svg(spec | {"config": theme.paper("#000", "#888", "#fff")})
    for label in ("rounds to zero: ", "scale reaches 3,020", "one step, 23.6", "peak 3,008"):
        assert label in drawn
    assert "NaN" not in drawn


def test_marks_are_left_out_where_no_scheme_has_one_scale(card: Card) -> None:
    tensor = opened(changed(card, sites=[])).tensor
    assert tensor is not None
    assert {"zeroed", "largest", "step"}.isdisjoint(tensor)
    spec = specification(distribution.chart(CardView(card))) | {"datasets": {distribution.DATA: [tensor]}}  # type: ignore[arg-type]
    assert "rounds to zero" not in svg(spec)


def test_older_cards_have_no_distribution_and_are_opened_without_it(card: Card) -> None:
    old = card.model_copy(update={"sites": [site.model_copy(update={"magnitudes": None}) for site in card.sites]})
    assert Card.model_validate(old.model_dump(exclude_unset=True)) == old
    assert all(row.tensor is None for row in inspections(CardView(old)))
    assert distribution.chart(CardView(old)) is None
    page = render_html(old)
    assert 'id="inspections"' in page
    assert 'id="inspector-plot"' not in page


def test_names_stay_short_and_hide_nothing() -> None:
    hostile = Card.model_validate(poison(make_card(2).model_dump(), "\u202e<b>`|" + "x" * 10_000))
    packed_text = json.dumps(packed(inspections(CardView(hostile))))
    assert "u202e" in packed_text
    assert "\\u202e" not in packed_text.replace("\\\\u202e", "")
    assert max(len(row.name) for row in inspections(CardView(hostile))) <= 240
    assert all(len(text) < 1000 for row in inspections(CardView(hostile)) for text in row.facts)


def test_names_of_schemes_and_clips_are_held_once(card: Card) -> None:
    rows = inspections(CardView(card))
    held = packed(rows)
    for row, (name, where, facts, clips, costs, tensor) in zip(rows, held["groups"], strict=True):
        assert (name, where, tuple(facts), tensor) == (row.name, row.where, row.facts, row.tensor)
        assert [(held["names"][line[0]], *line[1:]) for line in clips] == list(row.clips)
        assert [(held["names"][line[0]], *line[1:]) for line in costs] == list(row.costs)
