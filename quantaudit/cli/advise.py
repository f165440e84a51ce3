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
    profile: Annotated[
        Path | None, typer.Option(metavar="PROFILE", help="Profile of the card; beside it by default.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="CORPUS", help="Where the profile's corpus lies now, if it has moved.")
    ] = None,
    evaluation_tokens: options.EvaluationTokens = 4096,
    device: options.Device = "auto",
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
) -> None:
    """Change as little of a recipe as a KL budget needs: other observers, dynamic scales, or no quantization."""
    from quantaudit.cli import console
    from quantaudit.files import check_file, write_text

    check_file(out, force=force)

    from quantaudit.card.amend import amend_card, check_card
    from quantaudit.card.schema import Card, load_card
    from quantaudit.pipeline import check_profile, prepare, repeat
    from quantaudit.profile import load_profile
    from quantaudit.recipe.advise import Goal, advise
    from quantaudit.recipe.amended import amended, with_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.recipe.source import read_recipe
    from quantaudit.simulate import evaluation

    goal = Goal(max_kl=max_kl, as_good_as=as_good_as or (None if max_kl is not None else "dynamic"))
    parsed = read_recipe(recipe)
    told = load_card(card)
    measured = load_profile(profile or card.parent / "profile.safetensors")
    check_card(told, measured, card)
    settings = repeat(measured, model, corpus=corpus, device=device, trust_remote_code=trust_remote_code)
    subject = prepare(settings, console.say)
    check_profile(subject, measured)
    resolution = resolve(parsed, subject.loaded.model)
    samples = evaluation.select(subject.corpus.samples, evaluation_tokens)
    with console.progress() as stages:
        advice = advise(
            subject.loaded,
            measured,
            samples,
            resolution,
            goal,
            name=recipe.stem,
            moving_averages=moving_averages,
            stages=stages,
        )
    write_text(out, amended(advice, told.model, subject.loaded.model))

    def add(now: Card) -> Card:
        others = [row for row in now.advice if (row.recipe, row.goal) != (advice.info.recipe, advice.info.goal)]
        simulation = now.simulation and with_recipe(now.simulation, advice.row, out.stem)
        return now.model_copy(update={"advice": [*others, advice.info], "simulation": simulation})

    amend_card(card, add)
    console.out.print(console.advice_table(advice.info))
    console.say(f"wrote {out}, and the curve into {card}")
