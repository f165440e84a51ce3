"""The HTML card in a real browser: silent, offline, drawn, and no wider than its window."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.render import render_html
from quantaudit.card.schema import Card
from tests.card_factory import make_card
from tests.unit.card.test_render import hostile_card

pytestmark = pytest.mark.browser

CHARTS = 7
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def _absent(what: str) -> None:
    if os.environ.get("QUANTAUDIT_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{what} is missing, and QUANTAUDIT_REQUIRE_BROWSER=1 asks for it")
    pytest.skip(f"{what} is missing: the page is not tested in a browser")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        _absent("Chromium or its chromedriver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        _absent("selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary or ""
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=Service(driver))
    yield session
    session.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(make_card(), tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    payload = "</script>\"'><img src=x onerror=window.pwned=1><script>window.pwned=1</script>{{1}}"
    return _save(hostile_card(payload), tmp_path_factory.mktemp("hostile"))


def _save(card: Card, folder: Path) -> Path:
    path = folder / "card.html"
    path.write_text(render_html(card), encoding="utf-8")
    return path


def _open(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Open a page with charts, and wait for them."""
    from selenium.webdriver.support.ui import WebDriverWait

    visit(browser, path, width=width, scheme=scheme)
    WebDriverWait(browser, 30).until(
        lambda session: session.execute_script("return document.documentElement.dataset.charts") == "drawn"
    )


def visit(browser: Any, path: Path, *, width: int = 1280, scheme: str = "light") -> None:
    """Open a page in an empty tab with fresh logs."""
    browser.get("about:blank")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    _prefer(browser, scheme)
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(path.as_uri())


def _prefer(browser: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def _requests(browser: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [message["params"] for message in messages if message["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def _color(browser: Any, script: str) -> tuple[float, ...]:
    return tuple(float(part) for part in re.findall(r"[\d.]+", browser.execute_script(script))[:3])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_page_is_silent_offline_drawn_and_fits(browser: Any, page: Path, width: int, scheme: str) -> None:
    _open(browser, page, width=width, scheme=scheme)
    assert browser.get_log("browser") == []
    assert _requests(browser) == [page.as_uri()]
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) <= 0
    # A cell of the layer map opens what is known of its group, so that it is a button.
    count_marks = "p => p.querySelectorAll('svg [role=graphics-symbol], svg [role=button]').length"
    marks = browser.execute_script(f"return [...document.querySelectorAll('[data-chart]')].map({count_marks})")
    assert len(marks) == CHARTS
    # The frontier and the curve of an advice have a handful of points, the others one or more a layer.
    assert all(count > 20 for count in marks[:-2])
    assert min(marks[-2:]) >= 5
    assert "NaN" not in browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(s => s.outerHTML).join()"
    )


@pytest.mark.parametrize("width", [1280, 400])
def test_charts_and_legends_stay_inside_their_place(browser: Any, page: Path, width: int) -> None:
    _open(browser, page, width=width)
    outside = browser.execute_script(
        """
        const cut = [];
        for (const plot of document.querySelectorAll(".plot")) {
          const frame = plot.getBoundingClientRect();
          for (const text of plot.querySelectorAll("svg text")) {
            const box = text.getBoundingClientRect();
            if (box.width && (box.right > frame.right + 1 || box.left < frame.left - 1)) cut.push(text.textContent);
          }
        }
        return cut;
        """
    )
    assert outside == []


def test_text_of_charts_follows_the_color_scheme_while_open(browser: Any, page: Path) -> None:
    _open(browser, page, scheme="light")
    ink = "return getComputedStyle(document.querySelector('.plot svg text')).fill"
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert max(_color(browser, ink)) < 60 < 200 < min(_color(browser, paper))
    _prefer(browser, "dark")
    assert max(_color(browser, paper)) < 60 < 200 < min(_color(browser, ink))
    assert browser.get_log("browser") == []


def test_nothing_hostile_runs(browser: Any, hostile_page: Path) -> None:
    _open(browser, hostile_page, width=400)
    assert browser.execute_script("return window.pwned") is None
    assert browser.get_log("browser") == []
    assert _requests(browser) == [hostile_page.as_uri()]
    assert browser.execute_script("return document.querySelectorAll('img').length") == 0
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_tooltips_show_hostile_names_as_text(browser: Any, hostile_page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    _open(browser, hostile_page)
    cell = browser.find_element(By.CSS_SELECTOR, "[data-chart=chart-layer_map] .mark-rect.role-mark path")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", cell)
    ActionChains(browser).move_to_element(cell).perform()
    tooltip = browser.find_element(By.ID, "vg-tooltip-element")
    assert "visible" in (tooltip.get_attribute("class") or "")
    assert "<img src=x onerror" in tooltip.text
    assert browser.execute_script("return arguments[0].querySelectorAll('img, script').length", tooltip) == 0
    assert browser.execute_script("return window.pwned") is None


def test_page_without_a_simulation(browser: Any, tmp_path: Path) -> None:
    bare = make_card(simulation=None, correlation=[], advice=[])
    _open(browser, _save(bare, tmp_path))
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.querySelectorAll('.plot svg.marks').length") == 1


def test_long_names_do_not_widen_the_page(browser: Any, tmp_path: Path) -> None:
    _open(browser, _save(hostile_card("x" * 300), tmp_path), width=400)
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_printing_opens_what_is_folded(browser: Any, page: Path) -> None:
    _open(browser, page)
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return document.querySelectorAll('details:not([open])').length") == 0
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script("return document.querySelectorAll('details[open]').length") == 0


@pytest.mark.parametrize(
    ("paper", "ink"), [("rgb(255, 255, 255)", "rgb(33, 33, 33)"), ("rgb(17, 17, 17)", "rgb(255, 255, 255)")]
)
@pytest.mark.parametrize("width", [1280, 400])
def test_a_notebook_lends_the_card_its_ink(browser: Any, tmp_path: Path, width: int, paper: str, ink: str) -> None:
    payload = "</script>\"'><img src=x onerror=window.pwned=1><script>window.pwned=1</script>"
    cells = make_card()._repr_html_() + hostile_card(payload)._repr_html_()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(
        f'<!doctype html><html data-charts="drawn"><meta charset="utf-8"><link rel="icon" href="data:,">'
        f'<meta name="viewport" content="width=device-width"><body style="background: {paper}; color: {ink}">{cells}',
        encoding="utf-8",
    )
    _open(browser, notebook, width=width)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.pwned") is None
    assert _requests(browser) == [notebook.as_uri()]
    inks = "return [...new Set([...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill))]"
    assert browser.execute_script(inks) == [ink]
    assert browser.execute_script("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
