"""A comparison for a terminal: what has to be said first, the answer, then every table."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantaudit.card.text import visible
from quantaudit.cli.output.gate import OUTCOMES, SEVERITIES
from quantaudit.common.outcome import Outcome
from quantaudit.compare import tables
from quantaudit.compare.pages import title
from quantaudit.compare.report import Caveat, Comparison
from quantaudit.compare.sentences import sentences

ANSWERS: dict[Outcome, str] = {"pass": "within", "fail": "beyond", "inconclusive": "not decided"}


def show(comparison: Comparison, console: Console) -> None:
    """Caveats, decisions on limits, sentences, tables."""
    console.print(Text(title(comparison), style="bold"))
    for row in comparison.caveats:
        console.print(_caveat(row, comparison))
    for decision in comparison.decisions:
        name = tables.label(comparison.subjects[decision.subject])
        text = Text(f"{ANSWERS[decision.outcome]} {decision.limit}", style=OUTCOMES[decision.outcome])
        text.append(f"  {name}: {visible(decision.reason, tables.TEXT)}", style="default not bold")
        console.print(text)
    if lines := sentences(comparison.landscape, several=len(comparison.subjects) > 2):
        console.print()
        for line in lines:
            console.print(Text(line))
    for view in tables.tables(comparison):
        console.print()
        console.print(_table(view))


def _caveat(row: Caveat, comparison: Comparison) -> Text:
    text = Text(f"{row.severity} {row.code}", style=f"bold {SEVERITIES[row.severity]}")
    text.append(f" {row.title}: {visible(row.message, tables.TEXT)}", style="default not bold")
    if len(comparison.subjects) > 2:
        more = f" and {len(row.subjects) - 1} more" if len(row.subjects) > 1 else ""
        text.append(f" ({tables.label(comparison.subjects[row.subjects[0]])}{more})", style="dim not bold")
    if row.undecided:
        undecided = visible(", ".join(row.undecided), tables.TEXT)
        text.append(f"; leaves undecided: {undecided}", style="default not bold")
    return text


def _table(view: tables.TableView) -> Table:
    table = Table(title=Text(view.title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, column in enumerate(view.columns):
        left = index in view.text_columns
        table.add_column(Text(column), justify="left" if left else "right", overflow="fold")
    for row in view.rows:
        table.add_row(*map(Text, row))
    return table
