"""`quantaudit render`: the card's pages from its JSON, without the model."""

from __future__ import annotations

import gc
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
    gc.disable()  # nearly all that is made here lives as long as the process, and looking for the rest takes a tenth
    from quantaudit.card.vega.artist import Artist

    with Artist() as artist:  # starts while this process imports and reads
        from quantaudit.card.schema import load_card
        from quantaudit.card.seal import seal_state
        from quantaudit.cli import console
        from quantaudit.common.files import check_directory

        loaded = load_card(card)
        console.say_seal(seal_state(loaded), card)
        check_directory(out, force=force)
        from quantaudit.card.render import write_card

        for path in write_card(loaded, out, template_dir, source=card, artist=artist):
            console.say(f"wrote {path}")
