"""`quantaudit compare`: what differs between cards, or between checkpoints, and whether that is beyond a limit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CorpusSpec, ModelSpec, Settings, SimulateOptions

if TYPE_CHECKING:
    from quantaudit.compare.view import View

EXAMPLE = "Example: quantaudit compare old/card.json new/card.json --fail-on verdict --fail-on kl=0.01"
FOR_CARDS = ("require_sealed",)
"""Parameters that mean nothing for checkpoints."""
FOR_CHECKPOINTS = (
    *("corpus", "samples", "max_length", "special_tokens", "corpus_tokenizer", "seed", "evaluation_tokens"),
    *("dtype", "device", "arithmetic", "trust_remote_code"),
)
"""Parameters that mean nothing for cards."""


@options.flattened
def run(
    context: typer.Context,
    cards: Annotated[
        list[str],
        typer.Argument(
            metavar="CARD…",
            help="Two cards or more, card.json or its folder: the first is what the others are compared with. Also "
            "*_top5_stats.json of the paper's repository, and `published:MODEL`, `published:FAMILY`, `published:main`. "
            "With --logits models instead: Hub id, local folder (also as llm-compressor saves it quantized), .gguf "
            "file, or `demo`.",
        ),
    ],
    logits: Annotated[
        bool,
        typer.Option(
            "--logits",
            help="Run checkpoints on the same held-out tokens, and compare their next-token distributions with those "
            "of the first. Two models have to fit into memory at a time.",
        ),
    ] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            metavar="LIMIT",
            help="Exit 1 where a card regressed from the first beyond it: verdict (a worse one), kl=NATS (rises by "
            "more), top1=SHARE (falls by more), peak=RATIO (residual stream or Linear inputs). With --logits: kl=NATS "
            "(KL from the first), top1=SHARE (of tokens whose most likely next one changes). Repeatable.",
        ),
    ] = None,
    output: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="text, json or markdown, to stdout.")
    ] = "text",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for compare.html, compare.md and compare.json.")
    ] = None,
    corpus: CorpusSpec = CorpusSpec(),
    evaluation_tokens: Annotated[
        int, typer.Option(metavar="TOKENS", min=16, help="Held-out tokens that checkpoints are compared on.")
    ] = 4096,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    arithmetic: options.Arithmetic = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    require_sealed: options.RequireSealed = False,
    force: options.Force = False,
) -> None:
    """Compare activation cards: exit 0 done or within limits, 1 beyond one, 2 bad input, 3 not decided.

    With --logits checkpoints: KL both ways, top-1 agreement and perplexity, by confidence and domain. The options from
    --corpus to --trust-remote-code are for these.
    """
    from quantaudit.errors import UsageError

    if output not in ("text", "json", "markdown"):
        raise UsageError("unknown format", where=f"--format {output}", hint="one of text, json, markdown")
    _check_given(context, logits=logits)
    if logits:
        model = ModelSpec(
            model=cards[0], device=device, dtype=dtype, arithmetic=arithmetic, trust_remote_code=trust_remote_code
        )
        simulate = SimulateOptions(evaluation_tokens=evaluation_tokens)
        settings = Settings(model=model, corpus=corpus, simulate=simulate)
        answer = _of_checkpoints(settings, cards[1:], fail_on or [], out, force=force)
    else:
        answer = _of_cards(cards, fail_on or [], out, require_sealed=require_sealed, force=force)
    _give(answer, output, out)
    raise typer.Exit(answer.exit_code)


def _check_given(context: typer.Context, *, logits: bool) -> None:
    """Raises UsageError for an option of cards that is given for checkpoints, or the reverse."""
    from quantaudit.errors import UsageError

    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE":
            continue
        option = parameter.opts[-1]
        if logits and parameter.name in FOR_CARDS:
            raise UsageError("is about cards, and --logits compares checkpoints", where=option, hint="leave one out")
        if not logits and parameter.name in FOR_CHECKPOINTS:
            raise UsageError(
                "is about checkpoints, and cards are compared", where=option, hint="add --logits, or leave it out"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """A comparison, whatever of. json: all of it; view: what its pages and the terminal show."""

    json: str
    view: View
    exit_code: int


def _of_cards(cards: list[str], fail_on: list[str], out: Path | None, *, require_sealed: bool, force: bool) -> _Answer:
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.compare.limits import parse_limit
    from quantaudit.compare.pages import view_of
    from quantaudit.compare.report import to_json
    from quantaudit.compare.run import compare
    from quantaudit.compare.subjects.read import read_subjects

    limits = [parse_limit(text) for text in fail_on]
    subjects = read_subjects(cards, require_sealed=require_sealed)
    if out is not None:
        check_directory(out, force=force)
    for subject in subjects:
        if subject.seal is not None:
            console.say_seal(subject.seal, Path(subject.where))
    comparison = compare(subjects, limits)
    return _Answer(json=to_json(comparison), view=view_of(comparison), exit_code=comparison.exit_code)


def _of_checkpoints(
    settings: Settings, others: list[str], fail_on: list[str], out: Path | None, *, force: bool
) -> _Answer:
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.compare.logits.limits import parse_limits
    from quantaudit.pipeline.compare.files import open_models

    limits = parse_limits(fail_on)
    if out is not None:
        check_directory(out, force=force)
    files = open_models(settings, others)
    with console.progress() as stages:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.compare.run import compare_logits

        comparison = compare_logits(files, limits, stages=stages, say=console.say)
    from quantaudit.compare.logits.view import to_json, view_of

    return _Answer(json=to_json(comparison), view=view_of(comparison), exit_code=comparison.exit_code)


def _give(answer: _Answer, output: str, out: Path | None) -> None:
    """To stdout, and below a folder."""
    from quantaudit.cli import console
    from quantaudit.compare.pages import write_texts
    from quantaudit.compare.view import markdown_page

    if output == "text":
        from quantaudit.cli.output.compare import show

        show(answer.view, console.out)
    else:
        from quantaudit.common.printing.inert import inert, inert_json
        from quantaudit.common.printing.streams import write_results

        write_results(inert_json(answer.json) if output == "json" else inert(markdown_page(answer.view)))
    if out is not None:
        for path in write_texts(out, answer.json, answer.view):
            console.say(f"wrote {path}")
