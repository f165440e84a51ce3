"""The section of a README and the files next to it, from the card alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from quantaudit.card.judge.verdict import BROKEN, STOPPERS
from quantaudit.card.readme.badge import shields_json, svg
from quantaudit.card.readme.document import BEGIN, END, lines_of
from quantaudit.card.readme.recipe import served
from quantaudit.card.render import headroom
from quantaudit.card.schema import Card
from quantaudit.card.templates import markdown_environment, run
from quantaudit.card.text import USUAL_LEVEL
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.facts import family, folder_name, hub_id, report_command, scheme_lines

FOLDER = "quantaudit"
"""Folder next to the README."""
CARD, RECIPE, PAGE = f"{FOLDER}/card.json", f"{FOLDER}/recipe.yaml", f"{FOLDER}/card.html"
BADGE, BADGE_JSON = f"{FOLDER}/badge.svg", f"{FOLDER}/badge.json"
PICTURES = {"peaks_by_layer": "Peak by layer", "layer_map": "Cost by layer"}
"""Charts of which the first that a card has data for is shown, with their titles."""
FILES = (CARD, PAGE, RECIPE, BADGE, BADGE_JSON, *(f"{FOLDER}/{name}.png" for name in PICTURES))
"""All that may stand next to a README; those that a card does not give are removed."""
MOST_LINES = 40
SCHEMES_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Lines from marker to marker, and the files next to the README, by path from its folder.

    base: the repository on the Hub whose weights the card is of; None where they lay on a machine.
    """

    lines: list[str]
    files: Mapping[str, bytes]
    base: str | None


def section(card: Card, data: bytes, accepted: Callable[[str], bool], *, page: bytes | None = None) -> Section:
    """A card in at most 40 lines. data: the bytes of its card.json; accepted: whether a recipe may be named.

    page: the card as an HTML page, if there is one to go with it.
    """
    view = CardView(card)
    name, spec = _picture(view)
    recipe = served(card, accepted)
    files = {CARD: data, BADGE: svg(view), BADGE_JSON: shields_json(view)}
    if page is not None:
        files[PAGE] = page
    if recipe is not None:
        files[RECIPE] = recipe.recipe.encode("utf-8")
    if name is not None:
        from quantaudit.card.vega.image import png

        files[f"{FOLDER}/{name}.png"] = png(spec)
    shown = {
        "picture": None if name is None else Markup(f"{FOLDER}/{name}.png"),
        "picture_title": PICTURES.get(name or ""),
        "picture_text": spec.get("description", ""),
        "served": recipe,
        "stopper": next((row for row in card.findings if row.code in {BROKEN, *STOPPERS}), None),
        "page": None if page is None else Markup(PAGE),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    text = run(markdown_environment(None), "readme_section.md.j2", _context(view) | shown)
    return Section(lines=[BEGIN, *lines_of(text), END], files=files, base=hub_id(card))


def _picture(view: CardView) -> tuple[str | None, dict[str, Any]]:
    """Name and specification of the chart that is shown; None where the card has data for none."""
    from quantaudit.card.charts.draw import CHARTS, specification

    for name in PICTURES:
        chart = CHARTS[name](view)
        if chart is not None:
            return name, specification(chart)
    return None, {}


def _context(view: CardView) -> dict[str, Any]:
    card = view.card
    family_name, family_peaks = family(card)
    kinds = card.places.kinds if card.places else []
    longest = card.corpus.max_length
    if card.simulation is not None:
        longest = card.simulation.evaluation.max_tokens_per_sample
    hub = hub_id(card)
    return {
        "card": card,
        "view": view,
        "lines": scheme_lines(view),
        "scheme_limit": SCHEMES_SHOWN,
        "usual_level": USUAL_LEVEL,
        "headroom": headroom(card.peak.fp16_headroom),
        "at_first": next((row.first_position for row in kinds if row.kind == "linear_input"), None),
        "family_name": family_name,
        "family_peaks": family_peaks,
        "longest": longest,
        "not_measured": card.coverage.linears - card.coverage.linears_measured,
        "command": report_command(card),
        # They are made of letters, digits, dots, dashes and slashes, and stand in code that is copied.
        "hub": None if hub is None else Markup(hub),
        "folder": Markup(folder_name(card)),
        "recipe": Markup(RECIPE),
        "card_file": Markup(CARD),
    }
