"""`quantaudit simulate`: what the schemes of a report do to a measured model, as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from quantaudit.cli import options
from quantaudit.settings import ModelSpec, SimulateOptions

EXAMPLE = "Example: quantaudit simulate demo --profile p.safetensors --recipe w8a8.yaml --out simulation.json"


@options.flattened
def run(
    model: ModelSpec,
    profile: Annotated[Path, typer.Option(metavar="PROFILE", help="Profile of this model and corpus.")],
    out: options.OutFile,
    corpus: options.MovedCorpus = None,
    special_tokens: Annotated[
        Literal["auto", "none"] | None, typer.Option(help="As the profile was measured; anything else is refused.")
    ] = None,
    simulate: SimulateOptions = SimulateOptions(),
    memory_budget: options.MemoryBudget = None,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """Predict what INT8, other schemes and recipes do to every tensor, fused group and the whole model."""
    from dataclasses import asdict

    from quantaudit.cli import console
    from quantaudit.common.files import check_file, write_text
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.model.blockwise.memory import parse_size

    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    check_file(out, force=force, resume=resume)

    from quantaudit.measure.profile import load_profile
    from quantaudit.pipeline.files import open_files
    from quantaudit.pipeline.settings_of_profile import settings_of_profile

    measured = load_profile(profile)
    changed = asdict(model) | asdict(simulate) | {"special_tokens": special_tokens}
    settings = settings_of_profile(measured, changed.pop("model"), corpus=corpus, **changed)
    files = open_files(settings)
    state = RunState(Output(option="--out", path=out), resume=resume, say=console.say)
    with console.shared_progress(forks=memory_budget is None) as stages:
        # From here on torch is needed.
        from quantaudit.pipeline.simulate import simulate as run_simulate

        simulation = run_simulate(
            settings, measured, files=files, stages=stages, say=console.say, state=state, memory=memory
        )
        write_text(out, simulation.model_dump_json(indent=1) + "\n")
        state.done()
    console.out.print(console.recipe_table(simulation))
    console.say(f"wrote {out}")
