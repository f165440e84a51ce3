"""A group opened in a real browser: by mouse and keyboard, silent, as text, and closed where it was opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.render import render_html
from quantaudit.card.schema import Card, VerdictLimits
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.inspector import Inspection, inspections
from tests.browser.test_card_page import _open, _requests, browser
from tests.card_factory import make_card
from tests.unit.card.test_render import poison

__all__ = ["browser"]
pytestmark = pytest.mark.browser

LAYERS = 4
CELL = "[data-chart=chart-layer_map] [role=button]"
ROW = "#groups button.open"


@pytest.fixture(scope="module")
def card() -> Card:
    card = make_card(LAYERS)
    limits = VerdictLimits(kl=[0.03, 0.15], top1=[0.92, 0.8], level=0.95)
    return card.model_copy(update={"verdict": card.verdict.model_copy(update={"limits": limits})})


@pytest.fixture(scope="module")
def page(card: Card, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(card, tmp_path_factory.mktemp("card"))


def save(card: Card, folder: Path) -> Path:
    path = folder / "card.html"
    path.write_text(render_html(card), encoding="utf-8")
    return path


def named(card: Card, name: str) -> Inspection:
    return next(row for row in inspections(CardView(card)) if row.name == name)


def elements(browser: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    return list(browser.find_elements(By.CSS_SELECTOR, selector))


def wait_for(browser: Any, condition: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 30).until(lambda session: session.execute_script(f"return {condition}"))


def press(browser: Any, key: str) -> None:
    browser.switch_to.active_element.send_keys(key)


def shown(browser: Any) -> list[str]:
    """Name and facts of the group that is open."""
    wait_for(browser, "document.getElementById('inspector').dataset.shown !== undefined")
    name = elements(browser, "#inspector-name")[0].text
    return [name, *(fact.text for fact in elements(browser, "#inspector-facts dd"))]


def close(browser: Any) -> Any:
    """Close by Escape; the element that has the focus then."""
    from selenium.webdriver.common.keys import Keys

    press(browser, Keys.ESCAPE)
    wait_for(browser, "!document.getElementById('inspector').open")
    return browser.switch_to.active_element


def test_a_cell_is_opened_by_mouse_and_keyboard_and_keeps_the_focus(browser: Any, page: Path, card: Card) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    _open(browser, page)
    cells = elements(browser, CELL)
    assert len(cells) == 4 * LAYERS
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cells[0])
    ActionChains(browser).move_to_element(cells[0]).click().perform()
    first, *facts = shown(browser)
    assert facts == [text for text in named(card, first).facts if text]
    assert close(browser) == cells[0]
    for key, move in ((Keys.ENTER, Keys.ARROW_DOWN), (Keys.SPACE, Keys.ARROW_RIGHT)):
        before = browser.switch_to.active_element.get_attribute("aria-label")
        press(browser, move)
        label = browser.switch_to.active_element.get_attribute("aria-label")
        assert label != before
        press(browser, key)
        assert label.startswith(f"{shown(browser)[0]}, ")
        assert close(browser).get_attribute("aria-label") == label
    assert browser.get_log("browser") == []
    assert _requests(browser) == [page.as_uri()]


def test_arrows_stay_on_the_map_and_tab_leaves_it(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    _open(browser, page)
    browser.execute_script(f"document.querySelector('{CELL}').focus()")
    seen = []
    for key in (*[Keys.ARROW_LEFT] * 2, *[Keys.ARROW_RIGHT] * (LAYERS + 2), *[Keys.ARROW_DOWN] * 6, Keys.ARROW_UP):
        press(browser, key)
        seen.append(browser.switch_to.active_element.get_attribute("aria-label").split(",")[0])
    assert len(set(seen[1:-7])) == LAYERS
    assert len(set(seen[-8:])) == 4
    assert seen[-1] != seen[-2]
    assert len([cell for cell in elements(browser, CELL) if cell.get_attribute("tabindex") == "0"]) == 1
    press(browser, Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("role") != "button"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_what_is_open_is_drawn_fits_and_holds_the_cards_tables(
    browser: Any, page: Path, card: Card, width: int, scheme: str
) -> None:
    _open(browser, page, width=width, scheme=scheme)
    button = elements(browser, ROW)[0]
    name = button.text
    browser.execute_script("arguments[0].click()", button)
    shown(browser)
    marks = "document.querySelectorAll('#inspector-plot svg [role=graphics-symbol]').length"
    assert browser.execute_script(f"return {marks}") > 10
    drawn = browser.execute_script("return document.querySelector('#inspector-plot svg').textContent")
    assert "rounds to zero" in drawn
    assert "scale reaches" in drawn
    expected = named(card, name)
    for table, rows in (("costs", expected.costs), ("clips", expected.clips)):
        lines = elements(browser, f"#inspector-{table} tbody tr")
        cells = "return [...arguments[0].cells].map(cell => cell.textContent)"
        assert [tuple(browser.execute_script(cells, line)) for line in lines] == list(rows)
    fits = "const d = document.getElementById('inspector'); return [d.scrollWidth <= d.clientWidth, d.clientWidth]"
    inside, room = browser.execute_script(fits)
    assert inside
    assert room <= width
    assert close(browser) == button
    assert browser.get_log("browser") == []


def test_the_focus_finds_its_cell_when_the_map_was_drawn_again(browser: Any, page: Path) -> None:
    _open(browser, page, width=1280)
    cell = elements(browser, CELL)[5]
    label = cell.get_attribute("aria-label")
    browser.execute_script("(window.old = arguments[0]).dispatchEvent(new MouseEvent('click', {bubbles: true}))", cell)
    shown(browser)
    metrics = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait_for(browser, f"!old.isConnected && document.querySelectorAll('{CELL}').length === {4 * LAYERS}")
    assert close(browser).get_attribute("aria-label") == label


def test_hostile_names_are_text(browser: Any, tmp_path: Path) -> None:
    payload = "\u202e</script><img src=x onerror=window.pwned=1><script>window.pwned=1</script>" + "x" * 10_000
    page = save(Card.model_validate(poison(make_card(2).model_dump(), payload)), tmp_path)
    _open(browser, page, width=400)
    browser.execute_script(f"document.querySelector('{ROW}').click()")
    name = shown(browser)[0]
    assert name.startswith("\\u202e</script><img src=x onerror")
    assert browser.execute_script("return window.pwned") is None
    assert elements(browser, "#inspector img, #inspector script[src]") == []
    assert browser.execute_script(
        "const d = document.getElementById('inspector'); return d.scrollWidth <= d.clientWidth"
    )
    assert browser.get_log("browser") == []
    assert _requests(browser) == [page.as_uri()]


def test_an_older_card_says_that_it_holds_no_distribution(browser: Any, card: Card, tmp_path: Path) -> None:
    old = card.model_copy(update={"sites": [site.model_copy(update={"magnitudes": None}) for site in card.sites]})
    _open(browser, save(old, tmp_path))
    browser.execute_script(f"document.querySelector('{ROW}').click()")
    shown(browser)
    assert "does not hold the distribution" in elements(browser, "#inspector-reading")[0].text
    assert elements(browser, "#inspector-plot") == []
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("allowed", [True, False])
def test_the_command_is_copied_or_selected(browser: Any, page: Path, card: Card, allowed: bool) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    found = CardView(card).frontier
    assert found is not None
    assert found.advised is not None
    _open(browser, page)
    permission = {"permission": {"name": "clipboard-write"}, "setting": "granted" if allowed else "denied"}
    browser.execute_cdp_cmd("Browser.setPermission", permission)
    if not allowed:
        browser.execute_script("navigator.clipboard.writeText = () => Promise.reject(new Error('no clipboard'))")
    else:
        browser.execute_script(
            "const write = navigator.clipboard.writeText.bind(navigator.clipboard);"
            "navigator.clipboard.writeText = text => { window.copied = text; return write(text); }"
        )
    button = elements(browser, "button.copy")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    WebDriverWait(browser, 30).until(lambda session: button.text == ("Copied" if allowed else "Selected"))
    read = "return window.copied" if allowed else "return getSelection().toString()"
    assert browser.execute_script(read) == found.advised.command
    assert browser.get_log("browser") == []
