"""A plan for a terminal: the answer, what each way takes, and what would change it."""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantaudit.card.text import counted, visible
from quantaudit.model.blockwise.memory import size_option, size_text
from quantaudit.pipeline.plan.record import AuditPlan, Way
from quantaudit.simulate.cost import minutes


def show(plan: AuditPlan, console: Console) -> None:
    """The answer first."""
    console.print(_answer(plan))
    weights, text = plan.weights, plan.text
    about = "" if text.counted else "about "
    rank = " on each rank" if plan.ranks > 1 else ""
    lines = (
        f"{_count(plan.parameters)} parameters, {size_text(weights.total)} in {weights.dtype}: {weights.blocks} blocks "
        f"of up to {size_text(weights.largest_block)}",
        f"{about}{counted(text.tokens, 'token')} of {counted(text.samples, 'sample')} are measured",
        f"about {plan.passes:.0f} passes over {text.evaluated:,} of them for {plan.schemes} schemes",
        f"{_rate(plan.tokens_per_second)} tokens per second{rank} on {plan.device} ({plan.speed})",
    )
    for line in lines:
        console.print(Text(line))
    console.print(_table(plan))
    console.print(Text("Shorter: --samples, --evaluation-tokens, --schemes int8. Elsewhere: --tflops, --ranks."))


def _count(parameters: int) -> str:
    """So many, as models are called by: 1.5 billion, 135 million, 52.4 thousand."""
    for name, one in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        # 999,960 would round to 1,000.0 thousand.
        if parameters >= 0.9995 * one:
            return f"{parameters / one:,.{1 if name == 'billion' or parameters < 99.95 * one else 0}f} {name}"
    return str(parameters)


def _rate(tokens_per_second: float) -> str:
    """Whole where it has two digits or more."""
    return f"{tokens_per_second:,.{1 if tokens_per_second < 9.95 else 0}f}"


def _answer(plan: AuditPlan) -> Text:
    name, budget = visible(plan.model), size_text(plan.budget)
    ranks = f" by {plan.ranks} ranks" if plan.ranks > 1 else ""
    if plan.chosen is None:
        least = min(way.least_budget for way in plan.ways if way.memory is not None)
        text = f"{name} does not run within {budget}{ranks}: give --memory-budget {size_option(least * plan.ranks)}"
        return Text(text, style="bold red")
    way = plan.way(plan.chosen)
    how = "fits" if plan.chosen == "whole" else "runs block by block"
    text = f"{name} {how} within {budget}{ranks}: {minutes(way.seconds)}"
    return Text(text, style="bold green" if plan.chosen == "whole" else "bold yellow")


def _table(plan: AuditPlan) -> Table:
    each = ", each" if plan.ranks > 1 else ""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("")
    for column in (f"memory{each}", f"budget from{each}", f"disk{each}", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for way in plan.ways:
        chosen = way.name == plan.chosen
        note = visible(way.why_not or ("as asked" if chosen else ""))
        table.add_row(way.name, *_cells(way), note, style="bold" if chosen else None)
    return table


def _cells(way: Way) -> list[str]:
    if way.memory is None:
        return ["—", "—", "—", "—"]
    disk = size_text(way.disk) if way.disk else "—"
    return [size_text(way.memory), size_option(way.least_budget), disk, minutes(way.seconds)]
