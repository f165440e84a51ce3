"""What every form of a comparison shows, of cards and of checkpoints alike; and its page and its Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantaudit.card.templates import html_environment, markdown_environment, run, security_policy
from quantaudit.common.outcome import Outcome
from quantaudit.compare.report import Caveat, Decision

OF_ONE = frozenset({"QA708", "QA709", "QA711"})
"""Caveats that one side has to itself, whatever it is compared with."""
NAME = 60
"""Characters of a name."""
TEXT = 300
"""Characters of a sentence that holds names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """One table. text_columns: those that hold words, by index, the first among them; bars: share of one, by row."""

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset({0})
    bars: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InputView:
    """One of those that are compared. where: how it was given; fingerprint: of its weights; text: the rest."""

    where: str
    fingerprint: str | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A comparison in words. kind: of what; labels: names of what is compared, inert; headline: the answer.

    reference: what all others are compared with, in a sentence, where there are several of them; alike: what is said
    where there are no caveats.
    """

    kind: str
    title: str
    labels: Sequence[str]
    headline: str | None
    reference: str | None
    alike: str
    caveats: Sequence[Caveat]
    decisions: Sequence[Decision]
    sentences_title: str
    sentences: Sequence[str]
    tables: Sequence[TableView]
    inputs: Sequence[InputView]
    version: str

    def about(self, caveat: Caveat) -> str:
        """Which of them a caveat is about; empty where two are compared and it is about both."""
        if len(self.labels) <= 2 and caveat.code not in OF_ONE:
            return ""
        more = f" and {len(caveat.subjects) - 1} more" if len(caveat.subjects) > 1 else ""
        return f"{self.labels[caveat.subjects[0]]}{more}"

    def with_tables(self, more: Sequence[TableView]) -> View:
        """With tables behind these."""
        return replace(self, tables=[*self.tables, *more])


def headline(outcome: Outcome | None, words: Mapping[Outcome, str]) -> str | None:
    """The answer; None where no limit was given."""
    return None if outcome is None else words[outcome]


def page(view: View, *, home: str | None = None) -> str:
    """One offline page without scripts. home: address of the index of a site that it is a part of."""
    context = {"view": view, "text_limit": TEXT, "security_policy": security_policy([]), "home": home}
    return run(html_environment(None), "compare.html.j2", context)


def markdown_page(view: View) -> str:
    """The same as Markdown, for a release's notes or a pull request."""
    return run(markdown_environment(None), "compare.md.j2", {"view": view, "text_limit": TEXT})
