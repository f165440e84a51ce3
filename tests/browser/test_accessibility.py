"""No violation that axe-core knows, of any severity: light, dark, wide, narrow, tables unfolded, with a group open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from quantaudit.card.render import render_html
from quantaudit.card.schema import Card, ExpertLayer, ExpertsInfo, VerdictLimits
from quantaudit.provenance import Unmeasured
from tests.browser.test_card_page import _open, browser
from tests.card_factory import make_advice, make_card

__all__ = ["browser"]
pytestmark = pytest.mark.browser

LAYERS, EXPERTS = 2, 8


def mixture() -> Card:
    """Every layer's MLP is a list of experts, one of which saw no token."""
    text = make_card(LAYERS).model_dump_json().replace(".mlp.down_proj", ".mlp.experts.down_proj")
    layers = [
        ExpertLayer(
            name=f"layers.{layer}.mlp.experts",
            layer=layer,
            tokens=[300 * expert for expert in range(EXPERTS)],
            amax={"down_proj": [None, *(2.0**expert for expert in range(1, EXPERTS))]},
            amax_all_tokens={},
        )
        for layer in range(LAYERS)
    ]
    experts = ExpertsInfo(enough=16, layers=layers, calibration="Over routed tokens.", reading="One saw no token.")
    return Card.model_validate_json(text).model_copy(update={"experts": experts})


def vision_language() -> Card:
    """The highest peaks are at patches of images, and the tower that makes them was not measured."""
    card = make_card(LAYERS)
    patch = {"token": None, "token_id": -1, "token_kind": "image patch"}
    sites = [
        site.model_copy(update={"peaks": [peak.model_copy(update=patch) for peak in site.peaks]}) for site in card.sites
    ]
    tower = Unmeasured(module="model.vision_tower.layers.0.fc1", reason="saw no image", weights=True, cause="no_images")
    coverage = card.coverage.model_copy(update={"unmeasured": [tower]})
    return card.model_copy(update={"sites": sites, "coverage": coverage})


def dense() -> Card:
    """What there may be several of is there twice."""
    limits = VerdictLimits(kl=[0.03, 0.15], top1=[0.92, 0.8], level=0.95)
    card = make_card(LAYERS, advice=[make_advice(), make_advice("w4a16")])
    assert card.simulation is not None
    recipes = [*card.simulation.recipes, card.simulation.recipes[-1].model_copy(update={"name": "again"})]
    simulation = card.simulation.model_copy(update={"recipes": recipes})
    verdict = card.verdict.model_copy(update={"limits": limits})
    return card.model_copy(update={"simulation": simulation, "verdict": verdict})


CARDS = {"dense": dense, "mixture": mixture, "vision-language": vision_language}
WINDOWS = [(1280, "light"), (400, "dark"), (1280, "dark"), (400, "light")]
RUNS = [(name, *window) for name in CARDS for window in WINDOWS[: 4 if name == "dense" else 2]]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cards")
    for name, card in CARDS.items():
        (folder / f"{name}.html").write_text(render_html(card()), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in CARDS}


@pytest.mark.parametrize(("name", "width", "scheme"), RUNS)
def test_nothing_is_violated(browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    # The page's own policy lets no other script run.
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
    _open(browser, pages[name], width=width, scheme=scheme)
    browser.execute_script("document.getElementById('all-groups').open = true")
    WebDriverWait(browser, 30).until(
        lambda session: session.execute_script("return document.querySelector('#all-groups tbody tr') !== null")
    )
    assert violations(browser) == []
    browser.execute_script("document.querySelector('#groups button.open').click()")
    WebDriverWait(browser, 30).until(
        lambda session: session.execute_script("return document.getElementById('inspector').dataset.shown")
    )
    assert violations(browser) == []


def violations(browser: Any) -> list[tuple[str, str, str]]:
    """(rule, impact, first element) of everything that axe-core finds wrong on the page that is open."""
    from axe_core_python.selenium import Axe

    result = Axe().run(browser, options={"resultTypes": ["violations"]})
    assert len(result["passes"]) > 20
    return [(row["id"], row["impact"], row["nodes"][0]["html"][:200]) for row in result["violations"]]
