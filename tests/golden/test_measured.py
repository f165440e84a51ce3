"""Cards of tiny models that the product made: each opens as it did, and a run today finds what it holds."""

from __future__ import annotations

import pytest

from quantaudit.card.render import render_html, render_markdown
from quantaudit.card.schema import Card
from quantaudit.card.seal import seal_state
from tests.golden import measured
from tests.golden.conftest import Golden


@pytest.fixture(params=measured.CARDS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def kept(name: str) -> Card:
    return Card.model_validate_json((measured.FOLDER / name / measured.CARD).read_text(encoding="utf-8"))


def test_its_pages(name: str, kept: Card, golden: Golden) -> None:
    assert seal_state(kept) == "sealed"
    golden(f"{name}/{measured.PAGE}", render_markdown(kept)[0])
    page = render_html(kept)
    assert all(f'<section id="{part}"' in page for part in ("peaks", "groups"))
    assert ("Experts" in page) is (name == "mixture")


def test_a_run_today_finds_what_it_holds(name: str, kept: Card) -> None:
    """The parts and their order exactly; numbers as far as another machine's floating point lets them be."""
    today = measured.measure(name)
    assert today.simulation is not None
    assert kept.simulation is not None
    for part in ("corpus", "coverage"):
        assert getattr(today, part) == getattr(kept, part), part
    weights = {"fingerprint", "weights", "inputs", "files"}  # learned anew, and rounded by the machine that learns
    assert today.model.model_dump(exclude=weights) == kept.model.model_dump(exclude=weights)
    assert [row.model_dump(include={"name", "kind", "layer", "channels", "tokens"}) for row in today.sites] == [
        row.model_dump(include={"name", "kind", "layer", "channels", "tokens"}) for row in kept.sites
    ]
    for new, old in zip(today.sites, kept.sites, strict=True):
        assert new.amax == pytest.approx(old.amax, rel=0.25), new.name
    assert {(row.scheme, row.group) for row in today.simulation.groups} == {
        (row.scheme, row.group) for row in kept.simulation.groups
    }
    prices = {(row.scheme, row.group): row.price for row in kept.simulation.groups}
    for row in today.simulation.groups:
        assert row.price == pytest.approx(prices[row.scheme, row.group], rel=0.5, abs=5e-3), row.group
    assert [row.status for row in today.verdict.schemes] == [row.status for row in kept.verdict.schemes]
