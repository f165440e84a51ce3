"""`quantaudit render`: the card's pages from its JSON, without the model."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit render quantaudit-demo/card.json --out page/"


def run(
    card: Annotated[Path, typer.Argument(metavar="CARD", help="card.json written by `quantaudit report`.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for card.html, card.md and their images.")],
    template_dir: options.TemplateDir = None,
    force: options.Force = False,
) -> None:
    """Render an activation card as HTML and Markdown."""
    from quantaudit.card.vega.renderer import ChartRenderer

    with _uncollected(), ChartRenderer() as renderer:  # which starts while this process imports and reads
        from quantaudit.card.schema import load_card
        from quantaudit.card.seal import seal_state
        from quantaudit.cli import console
        from quantaudit.common.files import check_directory

        loaded = load_card(card)
        console.say_seal(seal_state(loaded), card)
        check_directory(out, force=force)
        from quantaudit.card.render import write_card

        for path in write_card(loaded, out, template_dir, source=card, renderer=renderer):
            console.say(f"wrote {path}")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection, a tenth of the time: nearly all that rendering makes is in use to its end."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
