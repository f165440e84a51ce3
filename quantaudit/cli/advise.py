"""`quantaudit advise`: a recipe that works, simulated before it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CaseSpec

EXAMPLE = (
    "Example: quantaudit advise recipes/w8a8_static.yaml --card card/card.json --model demo --out advised.yaml "
    "--as-good-as dynamic"
)


Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="llm-compressor recipe to start from.")]
Card = Annotated[
    Path, typer.Option("--card", metavar="CARD", help="card.json of this model; the advice is added to it.")
]


@options.flattened
def run(
    case: Annotated[CaseSpec, {"recipe": Recipe, "card": Card, "model": options.CaseModel}],
    out: options.OutFile,
    max_kl: Annotated[
        float | None, typer.Option(metavar="NATS", help="KL that is acceptable, mean nats per token.")
    ] = None,
    as_good_as: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="Accept the KL of an alternative everywhere: `dynamic`, the default."),
    ] = None,
    moving_averages: Annotated[
        bool,
        typer.Option(
            help="Offer llm-compressor's `minmax` observer, whose ranges depend on the order of samples.",
        ),
    ] = True,
    unquantized: Annotated[
        bool,
        typer.Option(
            help="Offer to leave groups unquantized, which not every engine runs together with quantized ones."
        ),
    ] = True,
    smoothing: Annotated[
        bool, typer.Option(help="Offer SmoothQuant to groups that read a norm; costs passes over calibration samples.")
    ] = True,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """Change as little of a recipe as a KL budget needs: other observers, smoothing, dynamic scales, or none."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.resume import RunState

    check_file(out, force=force)

    from quantaudit.advise.goal import Goal, Offers
    from quantaudit.card.seal import seal_state
    from quantaudit.pipeline.case import read_case

    goal = Goal(max_kl=max_kl, as_good_as=as_good_as or (None if max_kl is not None else "dynamic"))
    files = read_case(case)
    console.say_seal(seal_state(files.card), case.card)
    state = RunState(Output(option="--out", path=out), resume=resume, say=console.say)
    with console.shared_progress() as stages:
        # From here on torch is needed.
        from quantaudit.pipeline.advise import advise_case

        offers = Offers(moving_averages=moving_averages, unquantized=unquantized, smoothing=smoothing)
        advised = advise_case(files, goal, offers, stages=stages, say=console.say, state=state)
        advised.write(out, case.card)
        state.done()
    advice = advised.advice
    console.out.print(console.advice_table(advice.info))
    if advice.unmeasured and not unquantized:
        console.say(f"left unquantized all the same, as nothing was measured of it: {', '.join(advice.unmeasured)}")
    console.say(f"wrote {out}, and the curve into {case.card}")
