"""`quantaudit advise`: a recipe that works, simulated before it is given."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options

EXAMPLE = (
    "Example: quantaudit advise recipes/w8a8_static.yaml --card card/card.json --model demo --out advised.yaml "
    "--as-good-as dynamic"
)


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="llm-compressor recipe to start from.")],
    card: Annotated[Path, typer.Option(metavar="CARD", help="card.json of this model; the advice is added to it.")],
    model: Annotated[str, typer.Option(metavar="MODEL", help="The model of the card: Hub id, folder, file or `demo`.")],
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
        typer.Option(help="Offer llm-compressor's `minmax` observer, whose ranges hang on the order of samples."),
    ] = True,
    unquantized: Annotated[
        bool, typer.Option(help="Offer to leave groups unquantized, which not every engine runs beside quantized ones.")
    ] = True,
    smoothing: Annotated[
        bool, typer.Option(help="Offer SmoothQuant to groups that read a norm; costs passes over calibration samples.")
    ] = True,
    profile: options.CardProfile = None,
    corpus: options.MovedCorpus = None,
    evaluation_tokens: options.EvaluationTokens = 4096,
    arithmetic: options.Arithmetic = "auto",
    device: options.Device = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
) -> None:
    """Change as little of a recipe as a KL budget needs: other observers, smoothing, dynamic scales, or none."""
    from contextlib import ExitStack
    from functools import partial

    from quantaudit.cli import console
    from quantaudit.common.files import check_file, write_text

    check_file(out, force=force)

    from quantaudit.advise.goal import Goal
    from quantaudit.card.amend import amend_card
    from quantaudit.card.schema import Card
    from quantaudit.pipeline.case import open_case, read_case

    goal = Goal(max_kl=max_kl, as_good_as=as_good_as or (None if max_kl is not None else "dynamic"))
    files = read_case(
        recipe,
        model,
        card,
        profile=profile,
        corpus=corpus,
        revision=revision,
        arithmetic=arithmetic,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    with console.progress() as stages, ExitStack() as stack:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.advise.check_recipe import amended, with_recipe
        from quantaudit.advise.run import advise
        from quantaudit.pipeline.run import announce_stages
        from quantaudit.simulate.cost import CHOICES, RENDERING, advise_stages

        case = open_case(files, stages, evaluation_tokens=evaluation_tokens)
        stack.enter_context(case.subject.computed())
        loaded = case.subject.loaded
        calibration = case.subject.corpus.info.calibration.tokens
        evaluated = sum(len(sample.ids) for sample in case.samples)
        announce_stages(
            case.subject,
            stages,
            console.say,
            f"prices on {evaluated:,} evaluation tokens, and some {CHOICES} choices simulated on them",
            partial(advise_stages, evaluated, calibration, sites=len(files.card.sites), smoothing=smoothing),
        )
        advice = advise(
            loaded,
            case.profile,
            case.samples,
            case.resolution,
            goal,
            name=recipe.stem,
            moving_averages=moving_averages,
            unquantized=unquantized,
            calibration=case.subject.corpus.samples if smoothing else (),
            stages=stages,
        )

        def add(now: Card) -> Card:
            others = [row for row in now.advice if (row.recipe, row.goal) != (advice.info.recipe, advice.info.goal)]
            simulation = now.simulation and with_recipe(now.simulation, advice.row, out.stem)
            return now.model_copy(update={"advice": [*others, advice.info], "simulation": simulation})

        stages(RENDERING, 0)
        write_text(out, amended(advice, case.card.model, loaded.model))
        amend_card(card, add)
    console.out.print(console.advice_table(advice.info))
    if advice.unmeasured and not unquantized:
        console.say(f"left unquantized all the same, as nothing was measured of it: {', '.join(advice.unmeasured)}")
    console.say(f"wrote {out}, and the curve into {card}")
