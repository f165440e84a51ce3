"""`quantaudit atlas`: a static site over a folder of cards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit atlas cards/ --published --out site/"


def run(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that holds card.json files, at any depth.")],
    out: Annotated[Path, typer.Option(metavar="SITE", help="Folder for index.html and the pages that it leads to.")],
    published: Annotated[
        bool, typer.Option("--published", help="Show the 27 checkpoints of arXiv 2605.15572 among them.")
    ] = False,
    require_sealed: options.RequireSealed = False,
    force: options.Force = False,
) -> None:
    """Write a site that needs no server: a sortable table, a page for each family and each card.

    It loads nothing from anywhere. A card that cannot be read ends the command, and nothing is written.
    """
    from quantaudit.atlas.collect import collect
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory

    entries = collect(folder, with_published=published, require_sealed=require_sealed)
    check_directory(out, force=force)
    for entry in entries:
        if entry.path is not None and entry.subject.seal is not None:
            console.say_seal(entry.subject.seal, entry.path)

    # From here on the renderer of charts is needed.
    from quantaudit.atlas.site import write_site

    written = write_site(entries, out)
    console.say(f"wrote {written[1]}, and {len(written) - 1:,} files that it leads to")
