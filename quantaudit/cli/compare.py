"""`quantaudit compare`: what differs between cards, and whether one regressed beyond a limit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit compare old/card.json new/card.json --fail-on verdict --fail-on kl=0.01"


def run(
    cards: Annotated[
        list[str],
        typer.Argument(
            metavar="CARD…",
            help="Two cards or more, card.json or its folder: the first is what the others are compared with. Also "
            "*_top5_stats.json of the paper's repository, and `published:MODEL`, `published:FAMILY`, `published:main`.",
        ),
    ],
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LIMIT",
            help="Exit 1 where a card regressed from the first beyond it: verdict (a worse one), kl=NATS (rises by "
            "more), top1=SHARE (falls by more), peak=RATIO (residual stream or Linear inputs). Repeatable.",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="text, json or markdown, to stdout.")
    ] = "text",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for compare.html, compare.md and compare.json.")
    ] = None,
    require_sealed: options.RequireSealed = False,
    force: options.Force = False,
) -> None:
    """Compare activation cards: exit 0 done or within limits, 1 beyond one, 2 bad input, 3 not decided."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.compare.limits import parse_limit
    from quantaudit.compare.pages import render_markdown, write_pages
    from quantaudit.compare.report import to_json
    from quantaudit.compare.run import compare
    from quantaudit.compare.subjects.read import read_subjects
    from quantaudit.errors import UsageError

    if output not in ("text", "json", "markdown"):
        raise UsageError("unknown format", where=f"--format {output}", hint="one of text, json, markdown")
    limits = [parse_limit(text) for text in fail_on or ()]
    subjects = read_subjects(cards, require_sealed=require_sealed)
    if out is not None:
        check_directory(out, force=force)
    for subject in subjects:
        if subject.seal is not None:
            console.say_seal(subject.seal, Path(subject.where))
    comparison = compare(subjects, limits)
    if output == "text":
        from quantaudit.cli.output.compare import show

        show(comparison, console.out)
    else:
        from quantaudit.common.printing.inert import inert, inert_json
        from quantaudit.common.printing.streams import write_results

        json = output == "json"
        write_results(inert_json(to_json(comparison)) if json else inert(render_markdown(comparison)))
    if out is not None:
        for path in write_pages(comparison, out):
            console.say(f"wrote {path}")
    raise typer.Exit(comparison.exit_code)
