"""Propagation on the card: one line per recipe, and a sentence that says where the signal is lost."""

from __future__ import annotations

import json

import pytest

from quantaudit.card.charts import drift_by_layer
from quantaudit.card.charts.draw import specifications
from quantaudit.card.render import render_html, render_markdown
from quantaudit.card.schema import Card
from quantaudit.card.views.card_view import CardView
from tests.card_factory import make_card


@pytest.fixture(scope="module")
def card() -> Card:
    """The second recipe loses most, and that between layers 1 and 2."""
    plain = make_card()
    assert plain.simulation is not None
    first, second, *others = plain.simulation.recipes
    recipes = [
        first.model_copy(update={"propagation": [0.0, 0.01, 0.02, 0.03]}),
        second.model_copy(update={"propagation": [0.1, 0.2, 0.6, None]}),
        *others,
    ]
    return plain.model_copy(update={"simulation": plain.simulation.model_copy(update={"recipes": recipes})})


def test_every_finite_positive_drift_is_drawn(card: Card) -> None:
    assert card.simulation is not None
    titles = [recipe.title for recipe in card.simulation.recipes[:2]]
    points = [(row["recipe"], row["layer"], row["drift"]) for row in drift_by_layer.data(CardView(card))]
    assert points == [
        *((titles[0], layer, drift) for layer, drift in [(1, 0.01), (2, 0.02), (3, 0.03)]),
        *((titles[1], layer, drift) for layer, drift in [(0, 0.1), (1, 0.2), (2, 0.6)]),
    ]


def test_the_sentence_names_the_recipe_and_the_layer(card: Card) -> None:
    assert card.simulation is not None
    reading = drift_by_layer.reading(card)
    assert card.simulation.recipes[1].title in reading
    assert "in layer 2, where the change rises from 0.200 to 0.600; after the last layer it is 0.600." in reading


def test_both_cards_show_it(card: Card) -> None:
    reading = drift_by_layer.reading(card)
    html, (markdown, images) = render_html(card), render_markdown(card)
    assert "in layer 2, where the change rises" in html
    assert 'data-chart="chart-drift_by_layer"' in html
    assert "assets/drift_by_layer.png" in images
    assert "in layer 2, where the change rises" in markdown
    spec = specifications(CardView(card))["drift_by_layer"]
    assert reading in spec["description"]
    assert "http" not in json.dumps(spec)


def test_a_card_without_propagation_has_no_such_chart() -> None:
    assert drift_by_layer.reading(make_card()) == ""
    assert "drift_by_layer" not in specifications(CardView(make_card()))
