"""Advice and verification on a card: the sentence, the chart's rows, and both pages."""

from __future__ import annotations

import json
import re

import pytest

from quantaudit.card.charts.choices import advice_curve
from quantaudit.card.charts.draw import specifications
from quantaudit.card.render import render_html, render_markdown
from quantaudit.card.schema import Card
from quantaudit.card.sections.advice import advised
from quantaudit.card.views.card_view import CardView
from tests.card_factory import make_advice, make_card, make_findings, make_point, make_verification


@pytest.fixture
def card() -> Card:
    return make_card()


def test_the_sentence_tells_what_is_kept_and_what_is_gained() -> None:
    assert advised(make_advice()) == (
        "78% of the quantized Linears’ MACs keep the format of `w8a8_static`, and the KL goes from 1.30 to 0.0390 "
        "(goal: as good as dynamic everywhere, 0.04), simulated on 4,096 tokens."
    )
    assert advised(make_advice(met=False)).startswith("The goal was not met.")
    assert "not finite" in advised(make_advice(before=make_point("as written", 1.0, None)))


def test_the_chart_draws_every_finite_point_once() -> None:
    rows = advice_curve.data(make_advice(references=[make_point("dynamic everywhere", 0.0, None)]))
    assert [(row["role"], row["kl"]) for row in rows] == [
        ("as written", 1.3),
        ("best mixed recipe", 0.06),
        ("best mixed recipe", 0.01),
        ("advised", 0.039),
    ]


def test_a_card_without_advice_has_no_chart_and_no_section() -> None:
    plain = make_card(advice=[], verification=[])
    assert "advice_curve" not in specifications(CardView(plain))
    page = render_html(plain)
    assert 'id="advice"' not in page
    assert 'id="verification"' not in page


def test_both_pages_show_advice_and_verification(card: Card) -> None:
    page = render_html(card)
    section, images = render_markdown(card)
    assert 'href="#advice"' in page
    assert 'href="#verification"' in page
    assert "assets/advice_curve.png" in images
    for text in (page, section):
        assert "left unquantized" in text
        assert "1.32" in text
    assert "| w8a8" in section


def test_the_same_card_draws_the_same_bytes(card: Card) -> None:
    first, second = (json.dumps(specifications(CardView(card))["advice_curve"]) for _ in range(2))
    assert first == second


def test_names_of_recipes_are_escaped() -> None:
    hostile = "<img src=x onerror=alert(1)>|`x`"
    card = make_card(advice=[make_advice(hostile)], verification=[make_verification(hostile, agrees=False)])
    assert "<img src=x" not in render_html(card)
    section, _ = render_markdown(card)
    assert "<img src=x" not in section


def test_a_recipe_that_is_not_in_the_prediction_is_neither_agreed_nor_disagreed_with() -> None:
    reason = "GPTQ chooses rounded weights by calibration; only rounding to nearest is simulated"
    changed = {"unpredicted": [reason], "agrees": None, "outcome": "inconclusive", "reason": "There is `none`."}
    card = make_card(
        verification=[
            make_verification("gptq", pipeline="sequential", findings=make_findings(), kl_error=None, **changed),
            make_verification("plain", agrees=False),
        ]
    )
    section, _ = render_markdown(card)
    assert re.search(r"\| gptq \| sequential \| 4,096 \| not predicted \|.*\| 4 \|\n", section)
    assert re.search(r"\| plain \| basic \| 4,096 \| NO \|.*\| 0 \|\n", section)
    assert f"gptq, sequential: There is `none`. Not in the prediction: {reason}." in section
    assert "plain, basic" not in section
    page = render_html(card)
    assert '<td class="text">sequential</td><td>4,096</td><td class="text">not predicted</td>' in page
    assert f"There is <code>none</code>. Not in the prediction: {reason}." in page
