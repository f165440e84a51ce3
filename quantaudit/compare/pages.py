"""A comparison of cards as one offline page without scripts, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantaudit.card.text import count, visible
from quantaudit.common.outcome import Outcome
from quantaudit.common.outputs.file_set import file_set
from quantaudit.compare import tables
from quantaudit.compare.report import Comparison, to_json
from quantaudit.compare.sentences import sentences
from quantaudit.compare.subjects.subject import Subject
from quantaudit.compare.view import InputView, TableView, View, headline, markdown_page, page

PAGES = ("compare.json", "compare.html", "compare.md")
"""What a comparison is written as, below its folder."""
_ANSWERS: Mapping[Outcome, str] = {
    "pass": "Within every limit.",
    "fail": "Regressed beyond a limit.",
    "inconclusive": "Whether it regressed cannot be decided.",
}


def render_html(comparison: Comparison, more: Sequence[TableView] = (), *, home: str | None = None) -> str:
    """The page: what has to be said first, then every table.

    more: tables behind these. home: address of the index of a site that it is a part of.
    """
    return page(view_of(comparison).with_tables(more), home=home)


def render_markdown(comparison: Comparison) -> str:
    """The same as Markdown, for a release's notes or a pull request."""
    return markdown_page(view_of(comparison))


def write_pages(comparison: Comparison, out: Path) -> list[Path]:
    """Write compare.json, compare.html and compare.md below `out`, as one; the paths. Raises OutputError."""
    return write_texts(out, to_json(comparison), view_of(comparison))


def write_texts(out: Path, json: str, view: View) -> list[Path]:
    """The same of any comparison. json: all of it; view: what its pages show."""
    with file_set(out) as new:
        for name, text in zip(PAGES, (json, page(view), markdown_page(view)), strict=True):
            new.write(name, text.encode("utf-8"))
    return [out / name for name in PAGES]


def view_of(comparison: Comparison) -> View:
    """What every form of it shows."""
    subjects = comparison.subjects
    many = len(subjects) > 2
    return View(
        kind="Comparison of activation cards",
        title=title(comparison),
        labels=[tables.label(subject) for subject in subjects],
        headline=headline(comparison.outcome, _ANSWERS),
        reference=f"Every change is from {tables.label(subjects[0])}." if many else None,
        alike="All were made alike: the same text, dtype, versions and policy, as far as they say.",
        caveats=comparison.caveats,
        decisions=comparison.decisions,
        sentences_title="What they show together",
        sentences=sentences(comparison.landscape, several=many),
        tables=tables.tables(comparison),
        inputs=[_input(subject) for subject in subjects],
        version=comparison.quantaudit_version,
    )


def _input(subject: Subject) -> InputView:
    made = subject.conditions
    text = f"{count(made.samples)} samples of {visible(made.corpus, 60)}, {visible(made.dtype, 40)}"
    return InputView(where=subject.where, fingerprint=subject.fingerprint, text=text)


def title(comparison: Comparison) -> str:
    """What is compared, in a line."""
    first, last = comparison.subjects[0], comparison.subjects[-1]
    if len(comparison.subjects) == 2:
        return f"{tables.label(first)} → {tables.label(last)}"
    return f"{len(comparison.subjects):,} models, from {tables.label(first)} to {tables.label(last)}"
