"""The atlas in a real browser: silent, offline, sorted by its buttons, and no wider than its window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import quantaudit
from quantaudit.card.schema import dump_card
from tests.browser.test_card_page import _requests, browser, visit
from tests.unit.compare.subjects import a_card

__all__ = ["browser"]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("atlas")
    (folder / "cards").mkdir()
    (folder / "cards/card.json").write_text(dump_card(a_card()), encoding="utf-8")
    return quantaudit.atlas(folder / "cards", folder / "site", published=True)[1]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_pages_are_silent_offline_and_fit(browser: Any, page: Path, width: int, scheme: str) -> None:
    family = next((page.parent / "families").glob("ling*.html"))
    for path in (page, family):
        visit(browser, path, width=width, scheme=scheme)
        assert browser.get_log("browser") == []
        assert _requests(browser) == [path.as_uri()]
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(overflow) <= 0


def test_a_column_sorts_by_keyboard_both_ways_with_the_unknown_last(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    visit(browser, page)

    def column(number: int) -> list[str]:
        cell = "row => row.cells[arguments[0]].innerText"
        script = f"return [...document.querySelectorAll('.sortable tbody tr')].map({cell})"
        return list(browser.execute_script(script, number))

    def state() -> list[str | None]:
        heads = browser.find_elements(By.CSS_SELECTOR, ".sortable thead th")
        return [head.get_attribute("aria-sort") for head in heads]

    buttons = browser.find_elements(By.CSS_SELECTOR, ".sortable thead button")
    assert state()[3] == "descending"
    assert column(0)[0] == "gemma-3-27b-it"
    buttons[2].send_keys(Keys.ENTER)
    assert column(2)[0] == "135M"
    assert state()[2] == "ascending"
    assert state().count(None) == len(buttons) - 1
    buttons[2].send_keys(Keys.ENTER)
    assert column(2)[0] == "35B"
    assert column(2)[-4:] == ["—"] * 4
    buttons[0].send_keys(Keys.SPACE)
    names = column(0)
    assert names == sorted(names, key=str.casefold)
