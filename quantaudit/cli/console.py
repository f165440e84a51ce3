"""What people see in a terminal: progress on stderr, results on stdout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from quantaudit.card.seal import IN_WORDS
from quantaudit.card.text import counted, number, sample_count
from quantaudit.common.display import progress as show_progress
from quantaudit.common.printing.console import InertConsole, ResultsConsole
from quantaudit.common.ranks.processes import joined
from quantaudit.common.rounding import percentage, significant

if TYPE_CHECKING:
    from pathlib import Path

    from quantaudit.card.schema import AdviceInfo, Card, Verification
    from quantaudit.card.schema.verdict import SealState
    from quantaudit.common.progress import Job
    from quantaudit.model.sites import Architecture
    from quantaudit.provenance import SiteInfo
    from quantaudit.simulate.records import Simulation


out = ResultsConsole()
err = InertConsole(stderr=True)

COLOURS = {"READY": "green", "READY WITH CARE": "yellow", "NOT READY": "red", "INCONCLUSIVE": "bright_black"}


_SITE_WIDTH = 110
_EXPLAINED = 2
"""Schemes that are explained in a terminal, and those that are inconclusive; the card explains all."""


def say(text: str) -> None:
    """One line on stderr."""
    err.print(escape(text), highlight=False, soft_wrap=True)


def say_seal(state: SealState, path: Path) -> None:
    """One line on stderr where a card was edited after it was written, or has no seal."""
    if state != "sealed":
        say(f"{path}: {IN_WORDS[state]}")


def progress() -> AbstractContextManager[Job]:
    """Signs of life on stderr for as long as the context lasts; gives what opens a stage."""
    return show_progress(err)


@contextmanager
def shared_progress(*, forks: bool = False) -> Iterator[Job]:
    """The same of work that several ranks share, each of which is in this context; files are written within.

    forks: whether a process that is alone may share it with forks of its own.
    """
    with progress() as stages:
        stages("starting", 0)
        # From here on torch is needed.
        from quantaudit.common.ranks.forked import forks_allowed

        with joined(), forks_allowed() if forks else nullcontext():
            yield stages


def show_verdict(card: Card) -> None:
    """The answer on stdout: a table of schemes, then where they break and what to do."""
    part = "" if card.corpus.available is None else f", measured on {sample_count(card.corpus)}"
    table = Table(title=escape(f"{card.model.name}, quantized{part}"), title_justify="left")
    table.add_column("scheme")  # a narrow terminal wraps titles, and cuts off no number
    table.add_column("verdict", no_wrap=True)
    for column in ("KL", "top-1", "perplexity"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict in card.verdict.schemes:
        table.add_row(
            escape(verdict.title),
            f"[bold {COLOURS[verdict.status]}]{verdict.status}[/]",
            "—" if verdict.kl is None else significant(verdict.kl, *card.verdict.limits.kl),
            "—" if verdict.top1 is None else percentage(verdict.top1, *card.verdict.limits.top1),
            f"{number(verdict.perplexity_base)} → {number(verdict.perplexity)}",
        )
    out.print(table)
    out.print(escape(card.verdict.headline), style="bold", highlight=False)
    poor = [verdict for verdict in card.verdict.schemes if verdict.status != "READY"]
    shown = [row for number, row in enumerate(poor) if number < _EXPLAINED or row.status == "INCONCLUSIVE"]
    for verdict in shown:
        out.print(Text(f"\n{verdict.title}: {verdict.status}", style=f"bold {COLOURS[verdict.status]}"))
        out.print(escape(f"{verdict.reason}"), highlight=False)
        for group in verdict.worst_groups:
            out.print(escape(f"  {group.group}: {group.explanation}"), highlight=False)
        out.print(escape(f"  → {verdict.remedy}"), highlight=False)
    if others := [row for row in poor if row not in shown and row.worst_groups]:
        out.print("\nWhat the others lose most at:")
    for verdict in others:
        names = ", ".join(group.group for group in verdict.worst_groups)
        out.print(escape(f"  {verdict.title}: {names}"), highlight=False)
    for row in card.simulation.not_judged if card.simulation else []:
        out.print(escape(f"\n{row.title}: not judged, as it does not fit this model ({row.reason})"), highlight=False)


def _with_error(value: float | None, error: float | None, show: Callable[[float], str] = significant) -> str:
    if value is None:
        return "—"
    return show(value) if error is None else f"{show(value)} ± {error:.1g}"


def recipe_table(simulation: Simulation) -> Table:
    """Whole-model scores of every simulated recipe."""
    table = Table(title=f"{counted(simulation.evaluation.tokens, 'evaluation token')}", title_justify="left")
    for column, justify in (("recipe", "left"), ("KL", "right"), ("top-1", "right"), ("perplexity", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in simulation.recipes:
        table.add_row(
            escape(row.title),
            _with_error(row.kl, row.kl_stderr),
            "—" if row.top1 is None else f"{row.top1:.1%}",
            f"{number(row.perplexity_base)} → {number(row.perplexity)}",
        )
    return table


def advice_table(advice: AdviceInfo) -> Table:
    """Before, after, and the curve between: what each choice keeps and costs."""
    table = Table(title=escape(f"{advice.recipe}: {advice.goal}"), title_justify="left")
    for column, justify in (("choice", "left"), ("MACs kept", "right"), ("KL", "right"), ("estimate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    table.add_column("top-1", justify="right")
    rows = [advice.before, *advice.curve, *advice.references, advice.advised]
    for point in rows:
        table.add_row(
            escape(point.name),
            "—" if point.kept is None else f"{point.kept:.1%}",
            _with_error(point.kl, point.kl_stderr, "{:.4f}".format),
            number(point.estimated_kl),
            "—" if point.top1 is None else f"{point.top1:.1%}",
            style="bold green" if point is advice.advised and advice.met else None,
        )
    table.caption = f"The goal, a KL of {advice.budget:.4g}, was {'met' if advice.met else 'not met'}."
    return table


def show_verification(result: Verification) -> None:
    """Predicted and actual, then what is wrong with the saved scales, and what follows."""
    from quantaudit.cli.output.gate import OUTCOMES

    table = Table(title=escape(f"{result.recipe}, run by llm-compressor"), title_justify="left")
    table.add_column("")
    for column in ("KL", "top-1", "perplexity"):
        table.add_column(column, justify="right")
    scores = {
        "predicted, in part" if result.unpredicted else "predicted": result.predicted,
        "with the saved scales": result.with_saved_scales,
        "actual, loaded again": result.actual,
    }
    for title, score in scores.items():
        if score is not None:
            top1 = "—" if score.top1 is None else f"{score.top1:.1%}"
            before = "" if score.perplexity_base is None else f"{number(score.perplexity_base)} → "
            kl = "—" if score.kl is None else significant(score.kl, digits=4)
            table.add_row(title, kl, top1, f"{before}{number(score.perplexity)}")
    out.print(table)
    for name, scales in (("input", result.input_scales), ("weight", result.weight_scales)):
        if scales.compared:
            worst = "not saved, or no number" if scales.worst is None else f"at most {scales.worst:.1e} apart"
            out.print(escape(f"{scales.compared} {name} scales: {worst} (`{scales.module}`)"), highlight=False)
    for finding in result.findings:
        if finding.severity == "error" or finding.code == "QA609":
            style = "red" if finding.severity == "error" else "yellow"
            out.print(escape(f"{finding.code} {finding.module}: {finding.message}"), style=style, highlight=False)
    for reason in result.unpredicted:
        out.print(escape(f"not in the prediction: {reason}"), highlight=False)
    out.print(Text(result.reason, style=OUTCOMES[result.outcome]))


def show_sites(architecture: Architecture) -> None:
    """The observed tensors on stdout, then what is not measured."""
    # A name cut off says nothing: where a terminal is narrower than the table, its lines wrap.
    ResultsConsole(width=max(out.width, _SITE_WIDTH)).print(site_table(architecture))
    for line in missing_lines(architecture):
        out.print(line, highlight=False)


def site_table(architecture: Architecture) -> Table:
    """Sites of one kind in a row, over all layers and all experts: how many tensors, read by how many Linears."""
    table = Table(title="observed tensors", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for column, justify in (("site", "left"), ("kind", "left"), ("tensors", "right"), ("Linears", "right")):
        table.add_column(column, no_wrap=True, justify=justify)  # type: ignore[arg-type]
    table.add_column("layers", overflow="fold")
    rows: dict[tuple[str, str], list[SiteInfo]] = {}
    for site in architecture.sites:
        rows.setdefault((_pattern(site.name), site.kind), []).append(site)
    for (name, kind), sites in rows.items():
        layers = sorted({site.layer for site in sites if site.layer is not None})
        linears = sum(len(site.members) for site in sites)
        table.add_row(
            escape(name),
            kind.replace("_", " "),
            f"{len(sites):,}",
            f"{linears:,}" if linears else "",
            _layers(layers),
        )
    return table


def missing_lines(architecture: Architecture) -> list[str]:
    """What is not measured, and why, modules alike in one line."""
    missing = Counter((_pattern(row.module), row.reason, row.absent) for row in architecture.unmeasured)
    return [
        f"[{'dim' if absent else 'red'}]not measured[/] {escape(name)}{f' ({count:,})' if count > 1 else ''}: "
        f"{escape(reason)}"
        for (name, reason, absent), count in missing.items()
    ]


def _pattern(name: str) -> str:
    """A name with its numbers left out: what the layers and the experts of a model have in common."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


def _layers(layers: list[int]) -> str:
    if not layers:
        return ""
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}–{layers[-1]}" if whole and len(layers) > 1 else ", ".join(map(str, layers))
