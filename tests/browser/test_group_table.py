"""The table of all groups in a real browser: sorted, searched, opened, and silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.schema import Card
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.group_table import columns
from tests.browser.test_card_page import _open, _requests, browser
from tests.browser.test_inspector import elements, save, shown, wait_for
from tests.card_factory import make_card
from tests.unit.card.test_render import poison

__all__ = ["browser"]
pytestmark = pytest.mark.browser

LAYERS = 30
SUMMARY, WORDS, COUNT, MORE = "#all-groups summary", "#all-groups-words", "#all-groups-count", "#all-groups-more"
NAMES = "return [...document.querySelectorAll('#all-groups tbody th')].map(head => head.textContent)"


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(LAYERS)


@pytest.fixture(scope="module")
def page(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(card, tmp_path_factory.mktemp("card"))


def listed(browser: Any) -> list[str]:
    found: list[str] = browser.execute_script(NAMES)
    return found


def heads(browser: Any) -> dict[str, Any]:
    return {head.text.rstrip(" ▲▼"): head for head in elements(browser, "#all-groups thead th")}


def open_table(browser: Any) -> None:
    summary = elements(browser, SUMMARY)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'start'})", summary)
    summary.click()
    wait_for(browser, "document.querySelectorAll('#all-groups tbody tr').length > 0")


def test_groups_are_listed_worst_first_and_every_column_sorts(browser: Any, page: Path, card: Card) -> None:
    view = CardView(card)
    names = [line.group for line in view.groups]
    assert len(names) == 121
    _open(browser, page)
    open_table(browser)
    assert listed(browser) == names[:100]
    assert elements(browser, COUNT)[0].text == "100 of 121 groups, 21 more found"
    elements(browser, MORE)[0].click()
    assert listed(browser) == names
    assert not elements(browser, MORE)[0].is_displayed()
    found = heads(browser)
    ranking = [title for title, head in found.items() if head.get_attribute("aria-sort") == "descending"]
    assert ranking == [column.title for column in columns(view) if column.ranks]
    for column in columns(view):
        head, button = (
            found[column.title],
            elements(browser, "#all-groups thead button")[list(found).index(column.title)],
        )
        unknown = [name for place, name in enumerate(names) if place not in set(column.order)]
        ascending = [names[place] for place in column.order]
        ways = {"descending": ascending[::-1] + unknown, "ascending": ascending + unknown}
        for _ in ways:
            button.click()
            assert listed(browser) == ways[head.get_attribute("aria-sort")]
        sorted_by = [title for title, other in found.items() if other.get_attribute("aria-sort")]
        assert sorted_by == [column.title]
    assert browser.get_log("browser") == []
    assert _requests(browser) == [page.as_uri()]


def test_cells_are_the_cards(browser: Any, page: Path, card: Card) -> None:
    _open(browser, page)
    open_table(browser)
    first = "return [...document.querySelector('#all-groups tbody tr').cells].map(cell => cell.textContent)"
    view = CardView(card)
    assert browser.execute_script(first) == [view.groups[0].group, *(column.cells[0] for column in columns(view)[1:])]


def test_a_search_goes_by_words_and_opens_what_it_found(browser: Any, page: Path, card: Card) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(browser, page, width=400, scheme="dark")
    open_table(browser)
    elements(browser, WORDS)[0].send_keys("DOWN_proj  layers.2")
    names = [line.group for line in CardView(card).groups]
    wanted = [name for name in names if "down_proj" in name and "layers.2" in name]
    assert 1 < len(wanted) < 20
    assert listed(browser) == wanted
    assert elements(browser, COUNT)[0].text == f"{len(wanted)} of 121 groups"
    button = elements(browser, "#all-groups button.open")[1]
    browser.execute_script("arguments[0].focus()", button)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert shown(browser)[0] == wanted[1]
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait_for(browser, "!document.getElementById('inspector').open")
    assert browser.switch_to.active_element == button
    elements(browser, WORDS)[0].send_keys(" nowhere")
    assert listed(browser) == []
    assert elements(browser, COUNT)[0].text == "0 of 121 groups"
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.get_log("browser") == []


def test_every_row_of_the_other_tables_opens_its_own_group(browser: Any, page: Path) -> None:
    _open(browser, page)
    names = browser.execute_script(
        "return [...document.querySelectorAll('#groups button.open')].map(button => button.textContent)"
    )
    assert len(names) == 15
    for index in (0, len(names) - 1):
        browser.execute_script("document.querySelectorAll('#groups button.open')[arguments[0]].click()", index)
        assert shown(browser)[0] == names[index]
        browser.execute_script("document.getElementById('inspector').close()")


def test_hostile_names_are_text(browser: Any, tmp_path: Path) -> None:
    payload = "</script><img src=x onerror=window.pwned=1>" + "x" * 300
    page = save(Card.model_validate(poison(make_card(2).model_dump(), payload)), tmp_path)
    _open(browser, page, width=400)
    open_table(browser)
    assert "<img src=x onerror" in listed(browser)[0]
    assert elements(browser, "#all-groups img") == []
    assert browser.execute_script("return window.pwned") is None
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.get_log("browser") == []
