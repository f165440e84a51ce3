"""`quantaudit.render`: a card as HTML and Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantaudit.api.arguments import card_of, path_of

if TYPE_CHECKING:
    from quantaudit.card.schema import Card


def render(card: Card | str | Path, out: str | Path, *, template_dir: str | Path | None = None) -> list[Path]:
    """Write card.json, card.html, card.md and their images below a folder; the paths written, in that order.

    template_dir: templates that replace the shipped ones, file by file. Raises FormatError for a card or template that
    cannot be read, and OutputError for a place that cannot be written to.

    >>> [path.name for path in quantaudit.render("quantaudit-demo/card.json", "page")][:3]
    ['card.json', 'card.html', 'card.md']
    """
    from quantaudit.card.render import PAGES, write_card
    from quantaudit.common.outputs.claims import Output, claimed

    templates = None if template_dir is None else path_of(template_dir, "template_dir")
    source = Path(card) if isinstance(card, str | Path) else None
    place = Output(option="out", path=path_of(out, "out"), folder=True, writes=PAGES)
    read = {"card": source, "template_dir": templates}
    with claimed([place], {name: path for name, path in read.items() if path is not None}):
        return write_card(card_of(card), place.path, templates, source=source)
