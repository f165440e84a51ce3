"""Pages of a comparison: complete, without scripts, and inert whatever the cards say."""

from __future__ import annotations

from html import unescape

import pytest
from markdown_it import MarkdownIt

from quantaudit.compare.pages import PAGES, render_html, render_markdown
from quantaudit.compare.report import Comparison, to_json
from quantaudit.compare.run import compare
from quantaudit.compare.subjects.read import read_subjects
from quantaudit.compare.tables import log_positions, tables
from tests.unit.card.test_render import PAYLOADS, structure
from tests.unit.compare.subjects import a_card, comparison, hostile_card

LIMITS = ("verdict", "kl=0.01", "peak=1.5")
LONG = "x" * 10_000


def hostile(payload: str, cards: int = 2) -> Comparison:
    return comparison(*[hostile_card(payload)] * cards, limits=LIMITS)


@pytest.mark.parametrize("cards", [2, 3])
def test_no_text_of_a_card_changes_the_structure_of_the_page(cards: int) -> None:
    expected = structure(render_html(hostile("x", cards)))
    assert not {tag for tag, _ in expected} & {"script", "img", "iframe", "form", "input"}
    for payload in PAYLOADS:
        assert structure(render_html(hostile(payload, cards))) == expected


@pytest.mark.parametrize("cards", [2, 3])
def test_no_text_of_a_card_changes_the_structure_of_the_markdown(cards: int) -> None:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def kinds(payload: str) -> list[str]:
        tokens = parser.parse(render_markdown(hostile(payload, cards)))
        inline = [child.type for token in tokens for child in token.children or ()]
        return [token.type for token in tokens] + [kind for kind in inline if kind not in ("text", "text_special")]

    expected = kinds("x")
    assert "table_open" in expected
    for payload in PAYLOADS:
        assert kinds(payload) == expected


def test_a_name_of_ten_thousand_characters_fills_no_page() -> None:
    made = hostile(LONG)
    assert LONG not in render_html(made)
    assert len(render_html(made)) < 100_000
    assert len(render_markdown(made)) < 50_000


def test_the_page_may_load_nothing() -> None:
    html = unescape(render_html(comparison(a_card(), a_card())))
    assert "default-src 'none'; script-src 'none'; style-src 'unsafe-inline'" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_caveats_stand_before_any_number() -> None:
    card = a_card()
    made = comparison(card, card.model_copy(update={"seal": None}), limits=LIMITS)
    for text in (render_html(made), render_markdown(made)):
        assert -1 < text.index("QA708") < text.index("kl=0.01") < text.index("Verdicts and scores")


def test_json_is_read_again_as_it_was() -> None:
    made = comparison(a_card(), a_card(), limits=LIMITS)
    assert Comparison.model_validate_json(to_json(made)) == made
    assert len(PAGES) == 3


def test_many_stand_below_each_other_with_bars() -> None:
    made = compare(read_subjects(["published"]))
    view = tables(made)[0]
    assert len(view.rows) == len(view.bars) == 27
    assert max(view.bars) == 1.0
    html = render_html(made)
    assert html.count('class="bar"') == 27
    assert "22 of 24" in render_html(compare(read_subjects(["published:main"])))


def test_positions_are_logarithmic() -> None:
    assert log_positions([1.0, 10.0, None, 100.0]) == [0.0, 0.5, 0.0, 1.0]
    assert log_positions([None, None]) == [0.0, 0.0]
    assert log_positions([10.0]) == [0.0]


def test_of_two_cards_it_is_said_which_one_contradicts_itself() -> None:
    whole = comparison(a_card(), a_card())
    doubted = whole.subjects[0].model_copy(update={"contradictions": ["its scores differ"], "label": "the bad one"})
    pages = compare([doubted, whole.subjects[1].model_copy(update={"label": "the good one"})])
    for page in (unescape(render_html(pages)), render_markdown(pages)):
        assert "About the bad one" in page
        assert "About the good one" not in page


def test_a_table_has_no_ratio_of_two_texts() -> None:
    stages = read_subjects(["published:Ling"])
    part = stages[1].conditions.model_copy(update={"samples": 1000})
    stages[1] = stages[1].model_copy(update={"conditions": part})
    table = next(table for table in tables(compare(stages)) if table.title == "Largest activations")
    assert [row[3] for row in table.rows] == ["1.00×", "—", "1.32×", "1.54×"]
