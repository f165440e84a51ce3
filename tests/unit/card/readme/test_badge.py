"""The badge says the verdict in the card's words and colors, and no title of a scheme is anything but text in it."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from quantaudit.card.readme.badge import COLORS, shields_json, svg
from quantaudit.card.schema import Card
from quantaudit.card.seal import seal
from quantaudit.card.views.card_view import CardView
from quantaudit.common.resources import resource_dir
from tests.card_factory import make_card
from tests.unit.card.readme.test_section import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"
GREEN = COLORS["READY"]


def card_with(*statuses: str, title: str = "INT8") -> Card:
    card = make_card(2)
    row = card.verdict.schemes[0]
    rows = [row.model_copy(update={"status": status, "title": f"{title} {n}"}) for n, status in enumerate(statuses)]
    return card.model_copy(update={"verdict": card.verdict.model_copy(update={"schemes": rows})})


def drawn(card: Card) -> ElementTree.Element:
    return ElementTree.fromstring(svg(CardView(card)).decode())


def parts(card: Card) -> list[tuple[str | None, str | None]]:
    """Text and color of each part but the first."""
    root = drawn(card)
    rects = root.findall(f"{SVG}g/{SVG}rect")
    texts = root.findall(f"{SVG}g/{SVG}text")
    return [(text.text, rect.get("fill")) for text, rect in zip(texts, rects, strict=True)][1:]


def shields(card: Card) -> dict[str, object]:
    data: dict[str, object] = json.loads(shields_json(CardView(card)))
    return data


def test_each_scheme_has_its_words_and_its_color() -> None:
    card = card_with("NOT READY", "READY WITH CARE", "READY")
    assert parts(card) == [
        ("INT8 0: NOT READY", COLORS["NOT READY"]),
        ("INT8 1: READY WITH CARE", COLORS["READY WITH CARE"]),
        ("INT8 2: READY", GREEN),
    ]
    assert shields(card) == {
        "schemaVersion": 1,
        "label": "quantaudit",
        "message": "INT8 0: NOT READY; INT8 1: READY WITH CARE; INT8 2: READY",
        "color": COLORS["NOT READY"],
    }


def test_the_colors_are_those_of_the_page() -> None:
    css = (resource_dir("templates") / "card.css.j2").read_text(encoding="utf-8")
    names = {"READY": "ready", "READY WITH CARE": "care", "NOT READY": "not-ready", "INCONCLUSIVE": "inconclusive"}
    for status, name in names.items():
        light = re.search(rf"--{name}: (#[0-9a-f]{{6}})", css)
        assert light is not None
        assert COLORS[status] == light[1]
        assert contrast_to_white(COLORS[status]) >= 4.5


def contrast_to_white(color: str) -> float:
    """WCAG 2.1's ratio."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)) + 0.05)


@pytest.mark.parametrize("statuses", [["INCONCLUSIVE"], ["READY", "INCONCLUSIVE"], [], ["READY"] * 4 + ["NOT READY"]])
def test_nothing_unknown_or_hidden_is_green(statuses: list[str]) -> None:
    card = card_with(*statuses)
    assert shields(card)["color"] != GREEN
    for (text, color), status in zip(parts(card), statuses, strict=False):
        if color == GREEN:
            assert status == "READY"
            assert str(text).endswith(": READY")
    assert parts(card)[-1][1] != GREEN


def test_more_schemes_than_fit_are_counted_with_their_worst() -> None:
    assert parts(card_with(*["READY"] * 3, "NOT READY", "READY"))[-1] == (
        "2 more: NOT READY at worst",
        COLORS["NOT READY"],
    )
    assert parts(card_with(*["READY"] * 4))[-1] == ("1 more: READY", GREEN)


def test_an_edited_card_says_nothing_else() -> None:
    sealed = seal(card_with("NOT READY"))
    edited = sealed.model_copy(update={"verdict": card_with("READY").verdict})
    assert parts(edited) == [("card edited after it was written", COLORS["INCONCLUSIVE"])]
    assert shields(edited)["color"] == COLORS["INCONCLUSIVE"]
    assert parts(sealed)[0] == ("INT8 0: NOT READY", COLORS["NOT READY"])


def test_it_has_an_accessible_title() -> None:
    root = drawn(card_with("READY"))
    title = root.find(f"{SVG}title")
    assert title is not None
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", title.get("id"))
    assert title.text == "quantaudit: INT8 0: READY"


@pytest.mark.parametrize("payload", [*HOSTILE, "\ud800", "\x85\ufffe", "]]>", "&#0;", "<!ENTITY x SYSTEM 'file:///'>"])
def test_titles_are_inert(payload: str) -> None:
    plain, attacked = card_with("READY", "NOT READY"), card_with("READY", "NOT READY", title=payload)
    assert [node.tag for node in drawn(attacked).iter()] == [node.tag for node in drawn(plain).iter()]
    assert [node.keys() for node in drawn(attacked).iter()] == [node.keys() for node in drawn(plain).iter()]
    text = svg(CardView(attacked)).decode() + shields_json(CardView(attacked)).decode()
    assert len(text) < 4_000
    assert all(letter.isprintable() or letter in "\n\u200c\u200d" for letter in text)
    assert [color for _, color in parts(attacked)] == [color for _, color in parts(plain)]
    assert all(len(str(text)) < 60 for text, _ in parts(attacked))
