"""A gate's report for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from quantaudit.card.text import capital
from quantaudit.common.outcome import Outcome
from quantaudit.gate.report import GateFinding, GateReport, score_text

OUTCOMES: dict[Outcome, str] = {"pass": "bold green", "fail": "bold red", "inconclusive": "bold yellow"}
SEVERITIES = {"error": "red", "inconclusive": "yellow", "warning": "yellow", "info": "cyan"}


def show(report: GateReport, console: Console) -> None:
    """The outcome first, what the recipe does, then every finding with its remedy."""
    head = Text(f"{report.outcome.upper()}", style=OUTCOMES[report.outcome])
    head.append(f"  {report.recipe} on {report.model}, policy {report.policy_identity}", style="default not bold")
    console.print(head)
    for use in report.quantized:
        console.print(Text(f"  {use.modules:,} of {report.linears:,} Linears: {use.title}"))
    console.print(Text(f"  {score_text(report.score, report.limits)}"))
    for finding in report.findings:
        console.print()
        console.print(_title(finding, report.recipe))
        console.print(Padding(Text(f"{capital(finding.message)}."), (0, 0, 0, 2)))
        console.print(Padding(Text(f"→ {finding.remedy}", style="dim"), (0, 0, 0, 2)))
    console.print()
    console.print(Text(report.headline, style=OUTCOMES[report.outcome].removeprefix("bold ")))


def _title(finding: GateFinding, recipe: str) -> Text:
    text = Text(f"{finding.severity} {finding.code}", style=f"bold {SEVERITIES[finding.severity]}")
    text.append(f" {finding.title}", style="default bold")
    if finding.line is not None:
        text.append(f"  {recipe}:{finding.line}", style="dim")
    return text
