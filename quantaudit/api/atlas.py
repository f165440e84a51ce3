"""`quantaudit.atlas`: a folder of cards → a static site."""

from __future__ import annotations

from pathlib import Path

from quantaudit.api.arguments import path_of


def atlas(folder: str | Path, out: str | Path, *, published: bool = False, require_sealed: bool = False) -> list[Path]:
    """Write a site over all card.json below a folder; the paths written, index.html the second.

    published: show the 27 checkpoints of arXiv 2605.15572 among them. require_sealed: refuse a card that was edited
    after it was written, or has no seal. Raises UsageError for a folder without cards, FormatError for a card that
    cannot be read, OutputError for a place that cannot be written.

    >>> [path.name for path in quantaudit.atlas("quantaudit-demo", "site")][:2]
    ['atlas.json', 'index.html']
    """
    from quantaudit.atlas.collect import collect
    from quantaudit.atlas.site import PAGES, write_site
    from quantaudit.common.outputs.claims import Output, claimed

    source = path_of(folder, "folder")
    entries = collect(source, with_published=published, require_sealed=require_sealed)
    place = Output(option="out", path=path_of(out, "out"), folder=True, writes=PAGES)
    with claimed([place], {"folder": source}):
        return write_site(entries, place.path)
