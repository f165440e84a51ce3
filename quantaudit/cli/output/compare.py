"""A comparison for a terminal: what has to be said first, the answer, then every table."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantaudit.card.text import visible
from quantaudit.cli.output.gate import OUTCOMES, SEVERITIES
from quantaudit.common.outcome import Outcome
from quantaudit.compare.report import Caveat
from quantaudit.compare.view import TEXT, TableView, View

ANSWERS: dict[Outcome, str] = {"pass": "within", "fail": "beyond", "inconclusive": "not decided"}


def show(view: View, console: Console) -> None:
    """Caveats, decisions on limits, sentences, tables."""
    console.print(Text(view.title, style="bold"))
    for row in view.caveats:
        console.print(_caveat(row, view.about(row)))
    for decision in view.decisions:
        text = Text(f"{ANSWERS[decision.outcome]} {decision.limit}", style=OUTCOMES[decision.outcome])
        name, reason = view.labels[decision.subject], visible(decision.reason, TEXT)
        text.append(f"  {name}: {reason}", style="default not bold")
        console.print(text)
    if view.sentences:
        console.print()
        for line in view.sentences:
            console.print(Text(line))
    for table in view.tables:
        console.print()
        console.print(_table(table))


def _caveat(row: Caveat, about: str) -> Text:
    text = Text(f"{row.severity} {row.code}", style=f"bold {SEVERITIES[row.severity]}")
    text.append(f" {row.title}: {visible(row.message, TEXT)}", style="default not bold")
    if about:
        text.append(f" ({about})", style="dim not bold")
    if row.undecided:
        undecided = visible(", ".join(row.undecided), TEXT)
        text.append(f"; leaves undecided: {undecided}", style="default not bold")
    return text


def _table(view: TableView) -> Table:
    table = Table(title=Text(view.title), title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for index, column in enumerate(view.columns):
        left = index in view.text_columns
        table.add_column(Text(column), justify="left" if left else "right", overflow="fold")
    for row in view.rows:
        table.add_row(*map(Text, row))
    return table
