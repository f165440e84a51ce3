"""`quantaudit simulate`: what the schemes of a report do to a measured model, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantaudit.cli import options

EXAMPLE = "Example: quantaudit simulate demo --profile p.safetensors --recipe w8a8.yaml --out simulation.json"


def run(
    model: options.Model,
    profile: Annotated[Path, typer.Option(metavar="PROFILE", help="Profile of this model and corpus.")],
    out: options.OutFile,
    corpus: options.MovedCorpus = None,
    special_tokens: Annotated[
        Literal["auto", "none"] | None, typer.Option(help="As the profile was measured; anything else is refused.")
    ] = None,
    evaluation_tokens: options.EvaluationTokens = 4096,
    score: options.Score = "auto",
    single_groups: options.SingleGroups = "0",
    scheme: options.Schemes = None,
    recipe: options.Recipes = None,
    arithmetic: options.Arithmetic = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
    force: options.Force = False,
) -> None:
    """Predict what INT8, other schemes and recipes do to every tensor, fused group and the whole model."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file, write_text

    check_file(out, force=force)

    from quantaudit.measure.profile import load_profile
    from quantaudit.pipeline.inputs import open_inputs
    from quantaudit.settings import repeat

    measured = load_profile(profile)
    settings = repeat(
        measured,
        model,
        corpus=corpus,
        revision=revision,
        device=device,
        dtype=None if dtype == "auto" else dtype,
        trust_remote_code=trust_remote_code,
        special_tokens=special_tokens,
        arithmetic=None if arithmetic == "auto" else arithmetic,
        evaluation_tokens=evaluation_tokens,
        score=score,
        single_groups=single_groups,
        schemes=tuple(scheme or ()),
        recipes=tuple(recipe or ()),
    )
    inputs = open_inputs(settings)
    with console.progress() as stages:
        stages("starting", 0)

        # From here on torch is needed.
        from quantaudit.pipeline.run import announce, check_profile, prepare, simulate_subject

        subject = prepare(settings, console.say, inputs=inputs, stages=stages)
        check_profile(subject, measured)
        announce(subject, stages, console.say, measured=True)
        simulation = simulate_subject(subject, measured, stages)
    write_text(out, simulation.model_dump_json(indent=1) + "\n")
    console.out.print(console.recipe_table(simulation))
    console.say(f"wrote {out}")
