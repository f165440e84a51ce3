"""The files of an atlas: an index, a page for each family and each card, and all of it as JSON."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from quantaudit._version import __version__
from quantaudit.atlas.collect import Entry, families, slug
from quantaudit.atlas.index import Atlas, Model, index
from quantaudit.card.render import render_html as render_card
from quantaudit.card.schema import load_card
from quantaudit.card.text import ABSENT, factor, number
from quantaudit.common.outputs.file_set import file_set
from quantaudit.common.reading.regular_files import CARD_BYTES, read_text
from quantaudit.compare.changes import ratio
from quantaudit.compare.landscape import maximum
from quantaudit.compare.pages import render_html as render_comparison
from quantaudit.compare.run import compare
from quantaudit.compare.subjects.subject import Subject
from quantaudit.compare.subjects.texts import comparable
from quantaudit.compare.tables import label, log_positions, where
from quantaudit.compare.view import TableView

INDEX, DATA = "index.html", "atlas.json"
PAGES = (INDEX, DATA, "families/", "cards/")
"""What a site is, below its folder."""
_PAGE = re.compile(r"(?:families|cards)/[a-z0-9-]+\.html")


def write_site(entries: Sequence[Entry], out: Path) -> list[Path]:
    """Write a site below `out`, in place of the one that was there; all files change as one. The paths.

    Cards are read again, one at a time, for their pages. Raises OutputError.
    """
    written, old = [], _old_pages(out)
    with file_set(out) as new:
        for name, data in files(entries):
            new.write(name, data)
            written.append(name)
        for name in sorted(old - set(written)):
            new.remove(name)
    return [out / name for name in written]


def _old_pages(out: Path) -> set[str]:
    """Pages of the site that is there, by its atlas.json; what is no page of ours is left alone."""
    try:
        old = Atlas.model_validate_json(read_text(out / DATA, CARD_BYTES))
    except (OSError, ValidationError, ValueError):
        return set()
    return {page for model in old.models for page in (model.page, model.family_page) if page and _PAGE.fullmatch(page)}


def files(entries: Sequence[Entry]) -> Iterator[tuple[str, bytes]]:
    """Every file by its name below the site, the index second."""
    members = families(entries)
    pages = {name: f"families/{slug(name)}.html" for name, rows in members.items() if len(rows) > 1}
    homes = {id(entry): name for name, rows in members.items() for entry in rows}
    models = [
        Model(page=row.page, family=homes[id(row)], family_page=pages.get(homes[id(row)]), subject=row.subject)
        for row in entries
    ]
    yield DATA, (Atlas(quantaudit_version=__version__, models=models).model_dump_json(indent=1) + "\n").encode()
    yield INDEX, index(models).encode()
    for name, page in pages.items():
        yield page, family([entry.subject for entry in members[name]]).encode()
    for entry in entries:
        if entry.path is not None and entry.page is not None:
            yield entry.page, render_card(load_card(entry.path)).encode()


def family(members: Sequence[Subject]) -> str:
    """The page of one family: its members compared with the first that may be believed, and how peaks go along those of
    one shape.
    """
    believed_first = sorted(members, key=lambda member: bool(member.marks))
    return render_comparison(compare(believed_first), list(trajectories(members)), home=f"../{INDEX}")


def trajectories(members: Sequence[Subject]) -> Iterator[TableView]:
    """A table for each shape that several members have, such as stages of training."""
    shapes: dict[tuple[object, ...], list[Subject]] = {}
    for member in members:
        shapes.setdefault((member.lineage, member.layers, member.hidden_size), []).append(member)
    for (_, layers, hidden), of_shape in shapes.items():
        if len(of_shape) < 2:
            continue
        maxima = [maximum(member) for member in of_shape]
        ratios = [None, *itertools.starmap(_step, itertools.pairwise(of_shape))]
        yield TableView(
            title=f"From one to the next: {layers} layers, {hidden:,} wide",
            caption="Largest activations of models of one shape: stages of training, releases, tunings of one "
            "model. A ratio stands where both rest on one text and may be believed.",
            columns=("model", "largest", "over the one before", "where"),
            rows=[
                [label(member), number(value), factor(step), where(member.largest) if member.largest else ABSENT]
                for member, value, step in zip(of_shape, maxima, ratios, strict=True)
            ],
            text_columns=frozenset({0, 3}),
            bars=log_positions(maxima),
        )


def _step(earlier: Subject, later: Subject) -> float | None:
    """The ratio of two maxima; None where they rest on two texts, or may not be believed."""
    return ratio(maximum(later), maximum(earlier)) if comparable(earlier, later) else None
