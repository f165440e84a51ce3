"""`quantaudit report`: the whole audit, from checkpoint to activation card."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CorpusSpec, MeasureOptions, ModelSpec, SimulateOptions

if TYPE_CHECKING:
    from quantaudit.common.progress import Advance

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
    """Measure a checkpoint, predict what INT8 does to it, and write its activation card."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_directory
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.stats.kernels.ahead import compile_ahead

    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    folder = out or default_folder(model.model)
    check_directory(folder, force=force)
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
    with ExitStack() as stack, console.shared_progress(forks=memory_budget is None) as stages:
        # From here on torch is needed.
        from quantaudit.card.vega.renderer import ChartRenderer
        from quantaudit.pipeline.audit import CardOptions, audit
        from quantaudit.quant.export import scales
        from quantaudit.simulate.cost import RENDERING

        renderer = ChartRenderer()

        def shown(title: str, total: int, unit: str = "steps") -> Advance:
            if title == RENDERING:  # it starts while the card is built
                stack.enter_context(renderer)
            return stages(title, total, unit)

        result = audit(
            settings,
            files=files,
            profile=measured,
            options=CardOptions(policy=policy, redact_text=redact_text),
            stages=shown,
            say=console.say,
            state=state,
            memory=memory,
        )
        others = {"profile.safetensors": profile_bytes(result.profile), "scales.safetensors": scales(result.profile)[0]}
        written = write_card(result.card, folder, template_dir, others=others, renderer=renderer)
        state.done()
    console.show_verdict(result.card)
    console.say(f"open {next(path for path in written if path.suffix == '.html')}")


def default_folder(model: str) -> Path:
    """`quantaudit-<model>`, with the last part of a Hub id or path."""
    return Path(f"quantaudit-{Path(model).name.removesuffix('.gguf') or 'model'}")
