"""How a comparison of an artifact with a card reads in a terminal."""

from __future__ import annotations

from collections import Counter

from rich.markup import escape
from rich.table import Table

from quantaudit.card.text import capital, counted
from quantaudit.cli import console
from quantaudit.conform.run import Conformance

SHOWN = 12
"""Rows of each table; `--format json` has all of them."""
_COLOURS = {"error": "red", "warning": "yellow", "info": "bright_black"}
_OUTCOMES = {"pass": "green", "fail": "red", "inconclusive": "bright_black"}


def show(result: Conformance) -> None:
    """Ranges that cover least, findings, then the outcome."""
    if result.ranges:
        console.out.print(_ranges(result))
    if result.findings:
        console.out.print(_findings(result))
    below = sum(row.coverage is not None and row.coverage < 1 for row in result.ranges)
    console.out.print(
        escape(
            f"{result.kind}: {counted(result.static, 'static input range')}, {below:,} of them below the measured "
            f"peak; {result.dynamic:,} dynamic; {len(result.unquantized):,} of {counted(result.linears, 'Linear')} "
            f"on the card of {result.model} not quantized"
        ),
        highlight=False,
        soft_wrap=True,
    )
    console.out.print(f"[bold {_OUTCOMES[result.outcome]}]{result.outcome.upper()}[/] under policy {result.policy}")


def _ranges(result: Conformance) -> Table:
    shown = result.ranges[:SHOWN]
    title = "static input ranges, lowest coverage first"
    if len(shown) < len(result.ranges):
        title += f" ({SHOWN} of {len(result.ranges):,})"
    table = Table(title=title, title_justify="left")
    table.add_column("module", overflow="fold")
    for column in ("range", "measured peak", "coverage"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in shown:
        limit = None if row.high is None or row.low is None else max(row.high, -row.low)
        table.add_row(escape(row.module), _number(limit), _number(row.amax), _number(row.coverage))
    return table


def _findings(result: Conformance) -> Table:
    shown = result.findings[:SHOWN]
    codes = Counter(finding.code for finding in result.findings)
    title = f"{counted(len(result.findings), 'finding')}: {', '.join(f'{n:,} × {code}' for code, n in codes.items())}"
    if len(shown) < len(result.findings):
        title += f" (the first {SHOWN}; all with --format json)"
    table = Table(title=title, title_justify="left")
    table.add_column("code", no_wrap=True)
    table.add_column("module", overflow="fold")
    table.add_column("what", overflow="fold")
    for finding in shown:
        code = f"[{_COLOURS[finding.severity]}]{finding.code}[/]"
        table.add_row(code, escape(finding.module or "—"), escape(capital(finding.message)))
    return table


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:,.4g}"
