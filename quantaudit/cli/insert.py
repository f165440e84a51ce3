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
    readme: Annotated[
        Path | None, typer.Argument(metavar="README", help="README.md of the model's repository, on this machine.")
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            metavar="ORG/MODEL",
            help="Open a pull request on the Hub that puts the section and its files into this repository.",
        ),
    ] = None,
    front_matter: Annotated[
        bool,
        typer.Option(
            "--front-matter",
            help="Also add the tag `quantaudit`, and `base_model_relation` where it is known, to the YAML at the "
            "README's head.",
        ),
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where the section is not what the card gives.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace files of the folder `quantaudit` that no card came with."),
    ] = False,
    require_sealed: options.RequireSealed = False,
) -> None:
    """Write a card into a README.md: at most 40 lines between two comments, and nothing else changes.

    The card, its page, one picture, a badge and the recipe that is recommended are written into a folder `quantaudit`
    next to it. Only --push opens connections; it prints the pull request's address.
    """
    from quantaudit.card.readme.insert import (
        check_folder,
        check_places,
        check_readme,
        check_section,
        page_of,
        write_section,
    )
    from quantaudit.card.schema import load_card
    from quantaudit.card.seal import check_sealed, seal_state
    from quantaudit.cli import console
    from quantaudit.common.reading.regular_files import CARD_BYTES, read_bytes

    check_places(readme, push, check=check)
    if push is not None:
        from quantaudit.card.readme.hub import check_push

        check_push(push)
    loaded, data = load_card(card), read_bytes(card, CARD_BYTES)
    if require_sealed:
        check_sealed(loaded, card)
    if readme is not None:
        check_readme(readme)
    if readme is not None and not check and not force:
        check_folder(readme)
    console.say_seal(seal_state(loaded), card)
    page, left_out = page_of(loaded, card)
    if left_out:
        console.say(left_out)

    # From here on llm-compressor, and with it torch, is needed.
    from quantaudit.card.readme.section import section
    from quantaudit.gate.run import accepts

    given = section(loaded, data, partial(accepts, card=loaded), page=page)
    if readme is not None and check:
        result = check_section(given, readme, front_matter=front_matter)
        console.out.print(f"{readme}: {result}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1 if result.differences else 0)
    if push is not None:  # before anything changes here
        from quantaudit.card.readme.hub import push_section

        address = push_section(given, push, front_matter=front_matter).pull_request
        if address is None:
            console.say(f"{push}: nothing to change, so no pull request")
        else:
            console.out.print(address, markup=False, highlight=False, soft_wrap=True)
    if readme is not None:
        for path in write_section(given, readme, kept=card, front_matter=front_matter).written:
            console.say(f"wrote {path}" if path.exists() else f"removed {path}")
