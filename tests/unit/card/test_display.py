"""What a card shows at a prompt and in a notebook: few lines, inert HTML, and nothing that loads or runs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from quantaudit.card.schema import Card
from quantaudit.measure.profile import Profile
from tests.card_factory import STATIC, make_card
from tests.unit.card.test_render import PAYLOADS, hostile_card, structure

LONG = "a very long name\nof " * 200


def crowded() -> Card:
    """More schemes than are shown, and names that are longer than a screen."""
    card = hostile_card(LONG)
    schemes = [row for _ in range(20) for row in card.verdict.schemes]
    return card.model_copy(update={"verdict": card.verdict.model_copy(update={"schemes": schemes})})


def rich_text(value: Any) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(value)
    return console.export_text()


def test_the_repr_names_the_model_each_verdict_and_where_it_breaks() -> None:
    card = make_card()
    lines = repr(card).splitlines()
    assert str(card) == repr(card)
    assert lines[0] == "Card of SmolLM2-135M-Instruct: LlamaForCausalLM, 135M parameters, 131,072 tokens"
    for line, verdict in zip(lines[1:], card.verdict.schemes, strict=False):
        assert line.split()[: len(verdict.title.split())] == verdict.title.split()
        assert f"  {verdict.status}: KL " in line
    worst = card.verdict.schemes[0].worst_groups
    assert all(group.group in lines[3] for group in worst)
    assert lines[4] == "  findings: 1 error, 2 warnings, 1 remark"


@pytest.mark.parametrize("card", [make_card(), crowded(), hostile_card(LONG)], ids=["plain", "crowded", "long"])
def test_the_repr_of_any_card_is_short(card: Card) -> None:
    assert len(repr(card).splitlines()) <= 10
    assert len(repr(card).encode()) < 2000
    assert "\u202e" not in repr(card)


def test_a_card_without_a_simulation_says_so() -> None:
    card = make_card(simulation=None)
    card = card.model_copy(
        update={"verdict": card.verdict.model_copy(update={"schemes": [], "headline": "Measured, not simulated."})}
    )
    assert repr(card).splitlines()[1] == "  Measured, not simulated."
    html = card._repr_html_()
    assert "No quantization scheme was judged." in html
    assert "Peak by layer" in html


def test_rich_unfolds_no_fields() -> None:
    card = make_card()
    assert "SmolLM2-135M-Instruct" in rich_text(card)
    assert len(rich_text(card)) < 2000
    assert len(rich_text(card.simulation)) < 2000


def test_parts_of_an_audit_are_lines(tiny_profile: Profile) -> None:
    from quantaudit.pipeline.audit import Audit

    card = crowded()
    assert card.simulation is not None
    assert repr(tiny_profile).startswith("Profile('")
    assert f"{len(tiny_profile.sites):,} sites" in repr(tiny_profile)
    assert "\n" not in repr(tiny_profile) + repr(card.simulation)
    simulation = make_card().simulation
    assert simulation is not None
    assert "'INT8 static per tensor' KL 1.01" in repr(simulation)
    audit = Audit(card=card, profile=tiny_profile, simulation=card.simulation)
    assert len(repr(audit).splitlines()) <= 10
    assert audit._repr_html_() == card._repr_html_()


def test_the_notebook_shows_verdicts_and_the_layer_map() -> None:
    card = make_card()
    html = card._repr_html_()
    for verdict in card.verdict.schemes:
        assert verdict.title in html
        assert verdict.status in html
    assert "What each group costs" in html
    assert html.count("<svg") == 1 + len(card.verdict.schemes)
    assert len(html) < 60_000


def test_the_notebook_loads_and_runs_nothing() -> None:
    html = make_card()._repr_html_()
    tags = {tag for tag, _ in structure(html)}
    assert not tags & {"script", "style", "link", "iframe", "img", "object", "foreignobject", "a"}
    assert not re.search(r"\son\w+=|javascript:|(?:src|href)=", html)
    addresses = set(re.findall(r"https?://[^\"' ]+", html))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_card_changes_the_structure_of_the_notebook(payload: str) -> None:
    def outside_drawings(card: Card) -> Any:
        # Labels of a chart move and turn with their length; that its texts are escaped is the next test's.
        return structure(re.sub(r'<svg style="max-width.*?</svg>', "", card._repr_html_(), flags=re.DOTALL))

    assert outside_drawings(hostile_card(payload)) == outside_drawings(make_card())


def test_names_in_the_drawing_are_escaped() -> None:
    html = hostile_card('"><img src=x onerror=alert(1)></svg><script>alert(1)</script>')._repr_html_()
    assert {tag for tag, _ in structure(html)} <= {
        *("div", "strong", "span", "small", "br", "svg", "g", "path", "line", "text", "defs", "stop", "circle"),
        "lineargradient",
    }


def test_two_drawings_on_a_page_share_no_names() -> None:
    card = make_card()
    assert card._repr_html_() == make_card()._repr_html_()
    assert card.simulation is not None
    groups = [row for row in card.simulation.groups if row.scheme == STATIC and (row.layer or 0) < 9]
    other = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": groups})})
    names = [set(re.findall(r' id="([^"]+)"', each._repr_html_())) for each in (card, other)]
    assert names[0]
    assert not names[0] & names[1]
    uses = set(re.findall(r"url\(#([^)]+)\)", card._repr_html_()))
    assert uses == names[0]
