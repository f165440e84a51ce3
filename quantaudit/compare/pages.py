"""A comparison as one offline page without scripts, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantaudit.card.templates import html_environment, markdown_environment, run, security_policy
from quantaudit.common.outputs.file_set import file_set
from quantaudit.compare import tables
from quantaudit.compare.report import Comparison, to_json
from quantaudit.compare.sentences import sentences
from quantaudit.compare.tables import TableView

PAGES = ("compare.json", "compare.html", "compare.md")
"""What a comparison is written as, below its folder."""


def render_html(comparison: Comparison, more: Sequence[TableView] = (), *, home: str | None = None) -> str:
    """The page: what has to be said first, then every table.

    more: tables behind these. home: address of the index of a site that it is a part of.
    """
    context = _context(comparison)
    context |= {"security_policy": security_policy([]), "tables": [*context["tables"], *more], "home": home}
    return run(html_environment(None), "compare.html.j2", context)


def render_markdown(comparison: Comparison) -> str:
    """The same as Markdown, for a release's notes or a pull request."""
    return run(markdown_environment(None), "compare.md.j2", _context(comparison))


def write_pages(comparison: Comparison, out: Path) -> list[Path]:
    """Write compare.json, compare.html and compare.md below `out`, as one; the paths. Raises OutputError."""
    texts = (to_json(comparison), render_html(comparison), render_markdown(comparison))
    with file_set(out) as new:
        for name, text in zip(PAGES, texts, strict=True):
            new.write(name, text.encode("utf-8"))
    return [out / name for name in PAGES]


def _context(comparison: Comparison) -> dict[str, Any]:
    return {
        "comparison": comparison,
        "title": title(comparison),
        "labels": [tables.label(subject) for subject in comparison.subjects],
        "tables": tables.tables(comparison),
        "sentences": sentences(comparison.landscape, several=len(comparison.subjects) > 2),
        "text_limit": tables.TEXT,
        "many": len(comparison.subjects) > 2,
    }


def title(comparison: Comparison) -> str:
    """What is compared, in a line."""
    first, last = comparison.subjects[0], comparison.subjects[-1]
    if len(comparison.subjects) == 2:
        return f"{tables.label(first)} → {tables.label(last)}"
    return f"{len(comparison.subjects):,} models, from {tables.label(first)} to {tables.label(last)}"
