"""`quantaudit report`: the whole audit, from checkpoint to activation card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CorpusSpec, MeasureOptions, ModelSpec, SimulateOptions

EXAMPLE = "Example: quantaudit report Qwen/Qwen2.5-1.5B-Instruct --out card/"


@options.flattened
def run(
    model: ModelSpec = ModelSpec(),
    corpus: CorpusSpec = CorpusSpec(),
    measure: MeasureOptions = MeasureOptions(),
    simulate: SimulateOptions = SimulateOptions(),
    profile: options.ProfileFile = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for the card; quantaudit-<model>/ by default.")
    ] = None,
    policy: options.Policy = "default",
    redact_text: Annotated[
        bool,
        typer.Option(
            "--redact-text",
            help="Keep out of the card and its profile all from which "
            "text could be rebuilt: tokens, their ids and positions, names of samples, domains and files.",
        ),
    ] = False,
    template_dir: options.TemplateDir = None,
    memory_budget: options.MemoryBudget = None,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """Measure a checkpoint, predict what each scheme does to it, and write its activation card."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.stats.kernels.ahead import compile_ahead

    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    folder = out or default_folder(model.model)
    check_directory(folder, force=force, resume=resume)
    compile_ahead()

    from quantaudit.card.render import write_card
    from quantaudit.card.templates import check_templates
    from quantaudit.measure.profile import load_profile, profile_bytes
    from quantaudit.pipeline.files import open_files
    from quantaudit.policy import load_policy
    from quantaudit.settings import Settings

    load_policy(policy)
    if template_dir is not None:
        check_templates(template_dir)
    settings = Settings(model=model, corpus=corpus, measure=measure, simulate=simulate)
    files = open_files(settings)
    measured = load_profile(profile) if profile else None
    state = RunState(Output(option="--out", path=folder, folder=True), resume=resume, say=console.say)
    with console.shared_progress(forks=memory_budget is None) as stages:
        # From here on torch is needed.
        from quantaudit.card.vega.renderer import ChartRenderer
        from quantaudit.pipeline.audit import CardOptions, audited, measure_and_simulate
        from quantaudit.quant.export import scales

        simulated = measure_and_simulate(
            settings, files=files, profile=measured, stages=stages, say=console.say, state=state, memory=memory
        )
        with ChartRenderer() as renderer:  # which starts while the card is built
            result = audited(simulated, CardOptions(policy=policy, redact_text=redact_text), stages)
            profile_file, scales_file = profile_bytes(result.profile), scales(result.profile)[0]
            others = {"profile.safetensors": profile_file, "scales.safetensors": scales_file}
            written = write_card(result.card, folder, template_dir, others=others, renderer=renderer)
        state.done()
    console.show_verdict(result.card)
    console.say(f"open {next(path for path in written if path.suffix == '.html')}")


def default_folder(model: str) -> Path:
    """`quantaudit-<model>`, with the last part of a Hub id or path."""
    return Path(f"quantaudit-{Path(model).name.removesuffix('.gguf') or 'model'}")
