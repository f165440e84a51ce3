"""A recipe within a budget, for a terminal."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from quantaudit.advise.allocate import Allocation, simulation_of
from quantaudit.advise.written.allocated_recipe import compute_text
from quantaudit.card.schema import AdviceInfo
from quantaudit.card.text import counted, visible
from quantaudit.cli.output.gate import OUTCOMES
from quantaudit.common.rounding import significant
from quantaudit.gate.report import GateReport, score_text
from quantaudit.model.blockwise.memory import size_text
from quantaudit.pipeline.advise import AllocatedRecipe
from quantaudit.simulate.allocation import UNQUANTIZED, Point
from quantaudit.simulate.allocation.hardware import PRESETS, operands_of


def show(allocated: AllocatedRecipe, goal: str, console: Console, *, recipe: Path, card: Path) -> None:
    """The chosen schemes, what they come to, what that compares with, what the gate says, and how to verify it."""
    allocation, report = allocated.allocation, allocated.report
    point = allocation.point
    console.print(_chosen(allocation, goal))
    console.print(
        Text(f"{point.bits:.4g} bits for each quantizable weight, {size_text(point.size)} of weights in all.")
    )
    for line in hardware_lines(allocation):
        console.print(Text(line))
    console.print(Text(f"{score_text(report.score, report.limits)}."))
    console.print(_compared(allocation, report.limits.kl))
    console.print(gate_line(report))
    model = allocation.card.model
    spec = "MODEL" if model.fingerprint.startswith("memory:") else visible(model.spec)
    command = shlex.join(["quantaudit", "verify", str(recipe), spec, "--card", str(card)])
    verified = any(row.digest == report.digest for row in allocation.card.verification)
    console.print(Text(f"wrote {recipe}. It was {'run before; once more' if verified else 'not run'}: {command}"))


def hardware_lines(allocation: Allocation) -> list[str]:
    """What multiply-accumulates take on the hardware, which schemes it does not run, and which that it runs have no
    prices; nothing without hardware.
    """
    serving, compute = allocation.menu.serving, allocation.point.compute
    if serving is None or compute is None:
        return []
    lines = [compute_text(compute, serving.hardware)]
    if allocation.menu.not_run:
        lines.append(f"Not run on {serving.hardware.name}: {visible(', '.join(allocation.menu.not_run), limit=400)}.")
    priced = {operands_of(info) for info in simulation_of(allocation.card).schemes}
    missing = [PRESETS[operands] for operands in serving.hardware.mac_time if operands not in priced]
    if missing:
        lines.append(
            f"Run on {serving.hardware.name}, but without prices on this card: {', '.join(missing)} "
            f"(quantaudit report --scheme {missing[0]})."
        )
    return lines


def changes_in_words(advice: AdviceInfo, groups: int) -> list[str]:
    """`23 of 120 groups changed: dynamic per token`, a line for each way in which they are."""
    counts = Counter(change.title for change in advice.changes)
    return [f"{count:,} of {counted(groups, 'group')} changed: {title}" for title, count in counts.most_common()] or [
        "no group is changed"
    ]


def gate_line(report: GateReport) -> Text:
    """What the gate says of a recipe that is advised."""
    return Text(f"gate: {report.outcome.upper()}  {report.headline}", style=OUTCOMES[report.outcome])


def _chosen(allocation: Allocation, goal: str) -> Table:
    table = Table(title=escape(f"{visible(allocation.card.model.name)}: {goal}"), title_justify="left")
    table.add_column("scheme")
    for column in ("groups", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    menu, chosen = allocation.menu, allocation.point.schemes
    sizes: dict[str | None, int] = {}
    for unit in menu.units:
        scheme = chosen[unit.groups[0]]
        sizes[scheme] = sizes.get(scheme, 0) + unit.sizes[unit.schemes.index(scheme)]
    names = list(chosen.values())
    for scheme, size in sorted(sizes.items(), key=lambda row: -row[1]):
        title = "left unquantized" if scheme is UNQUANTIZED else menu.schemes[scheme].title
        table.add_row(escape(visible(title)), f"{names.count(scheme):,}", size_text(size))
    table.add_row("all else, as it is", "", size_text(menu.rest))
    return table


def _compared(allocation: Allocation, limits: list[float]) -> Table:
    """Every scheme in all groups, and the mixture of as many bytes, and as much compute where that is known."""
    table = Table(title="in comparison", title_justify="left")
    table.add_column("all groups in")
    served = allocation.menu.serving is not None
    mixture = f"best mixture of its bytes{' and compute' if served else ''}"
    for column in ("bits", *(["compute"] if served else []), "KL", mixture):
        table.add_column(column, justify="right", no_wrap=column != mixture)
    for row in sorted(allocation.references, key=lambda row: (row.point.size, row.point.kl)):
        compute = [f"{100 * (row.point.compute or 0):.3g}%"] if served else []
        numbers = (f"{row.point.bits:.4g}", *compute, _kl(row.point, limits), _kl(row.mixture, limits))
        table.add_row(escape(visible(row.title)), *numbers)
    return table


def _kl(point: Point, limits: list[float]) -> str:
    return f"{significant(point.kl, *limits)}{'' if point.source == 'measured' else ' est.'}"
