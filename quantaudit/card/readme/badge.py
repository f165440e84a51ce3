"""The verdict as a badge: an SVG file, and the JSON of which shields.io makes one."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from quantaudit.card.templates import html_environment, run
from quantaudit.card.text import visible
from quantaudit.card.views.card_view import CardView

LABEL = "quantaudit"
COLORS = {"NOT READY": "#b3201c", "INCONCLUSIVE": "#57606a", "READY WITH CARE": "#805400", "READY": "#176b32"}
"""The page's colors on white, worst status first."""
_LABEL_COLOR = "#24292f"
_SHOWN = 3
"""Schemes on a badge; more would be wider than a narrow page."""
_LONGEST = 32
"""Characters of a scheme's title."""
_PADDING = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A stretch of one color. x, width, text_width in pixels."""

    text: str
    color: str
    x: float
    width: float
    text_width: float

    @property
    def center(self) -> float:
        return self.x + self.width / 2


def svg(view: CardView) -> bytes:
    """The badge as an SVG file that loads nothing: a part for each scheme, in the color of its status on the page."""
    parts: list[_Part] = []
    for text, color in [(LABEL, _LABEL_COLOR), *_statements(view)]:
        x = parts[-1].x + parts[-1].width if parts else 0.0
        text_width = _text_width(text)
        parts.append(_Part(text=text, color=color, x=x, width=text_width + 2 * _PADDING, text_width=text_width))
    title = f"{LABEL}: {_message(view)}"
    context = {"parts": parts, "width": parts[-1].x + parts[-1].width, "title": title}
    return run(html_environment(None), "badge.svg.j2", context).encode("utf-8")


def shields_json(view: CardView) -> bytes:
    """What shields.io's endpoint badge reads. It has one color: that of the worst status."""
    colors = [color for _, color in _statements(view)]
    worst = min(colors, key=list(COLORS.values()).index)
    badge = {"schemaVersion": 1, "label": LABEL, "message": _message(view), "color": worst}
    return f"{json.dumps(badge, indent=2)}\n".encode()


def _statements(view: CardView) -> Sequence[tuple[str, str]]:
    """What a badge says, each with its color; of a card that was edited nothing but that."""
    unknown = COLORS["INCONCLUSIVE"]
    if view.edited:
        return [("card edited after it was written", unknown)]
    schemes = view.card.verdict.schemes
    if not schemes:
        return [("no verdict", unknown)]
    said = [(f"{visible(row.title, _LONGEST)}: {row.status}", COLORS[row.status]) for row in schemes[:_SHOWN]]
    rest = schemes[_SHOWN:]
    if rest:
        # The worst of those that are not named, so that a better color hides none.
        worst = min((row.status for row in rest), key=list(COLORS).index)
        said.append((f"{len(rest)} more: {worst} at worst" if len(rest) > 1 else f"1 more: {worst}", COLORS[worst]))
    return said


def _message(view: CardView) -> str:
    return "; ".join(text for text, _ in _statements(view))


def _text_width(text: str) -> float:
    """About what a text takes in the badge's font; the drawing is fitted into it, whichever font is there."""
    return sum(map(_width, text))


def _width(letter: str) -> float:
    if unicodedata.east_asian_width(letter) in "WF":
        return 11.0
    return 7.9 if letter.isupper() else 6.5
