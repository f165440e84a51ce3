"""`quantaudit insert`: the card as a section of a model repository's README.md."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit insert quantaudit-demo/card.json README.md"


def run(
    card: Annotated[Path, typer.Argument(metavar="CARD", help="card.json written by `quantaudit report`.")],
    readme: Annotated[Path, typer.Argument(metavar="README", help="README.md of the model's repository.")],
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where the section is not what the card gives.")
    ] = False,
    require_sealed: options.RequireSealed = False,
) -> None:
    """Write a card into a README.md: at most 40 lines between two comments, and nothing else changes.

    The card, one picture and the recipe that is recommended are written into a folder `quantaudit` next to it.
    """
    from quantaudit.card.readme.insert import check_readme, check_section, write_section
    from quantaudit.card.schema import load_card
    from quantaudit.card.seal import check_sealed, seal_state
    from quantaudit.cli import console
    from quantaudit.common.reading.regular_files import CARD_BYTES, read_bytes

    loaded, data = load_card(card), read_bytes(card, CARD_BYTES)
    if require_sealed:
        check_sealed(loaded, card)
    check_readme(readme)
    console.say_seal(seal_state(loaded), card)

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.card.readme.section import section
    from quantaudit.gate.run import accepts

    given = section(loaded, data, partial(accepts, card=loaded))
    if check:
        result = check_section(given, readme)
        console.out.print(f"{readme}: {result}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1 if result.differences else 0)
    for path in write_section(given, readme, kept=card).written:
        console.say(f"wrote {path}" if path.exists() else f"removed {path}")
