"""`quantaudit measure`: one pass over the corpus, into a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from quantaudit.cli import options
from quantaudit.settings import CorpusSpec, MeasureOptions, ModelSpec

EXAMPLE = "Example: quantaudit measure demo --out smollm2.safetensors"

Reference = Annotated[
    Path | None,
    typer.Option(
        "--export-reference",
        metavar="FILE",
        help="Also write the statistics of arXiv 2605.15572, under its names (JSON). Takes one more pass over the "
        "text.",
    ),
]


@options.flattened
def run(
    model: ModelSpec,
    out: options.OutFile,
    corpus: CorpusSpec = CorpusSpec(),
    measure: MeasureOptions = MeasureOptions(),
    shard: options.ShardOf = None,
    memory_budget: options.MemoryBudget = None,
    export_reference: Reference = None,
    force: options.Force = False,
    resume: options.Resume = False,
) -> None:
    """Measure activation statistics at every site of a model."""
    from quantaudit.cli import console
    from quantaudit.common.files import check_file
    from quantaudit.common.outputs.claims import Output
    from quantaudit.common.outputs.file_set import file_set
    from quantaudit.common.outputs.resume import RunState
    from quantaudit.errors import UsageError
    from quantaudit.measure.shard import parse_shard
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.stats.kernels.ahead import compile_ahead

    part = None if shard is None else parse_shard(shard)
    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    if part is not None and part.count > 1 and export_reference is not None:
        raise UsageError(
            "a shard's statistics are not those of the corpus",
            where="--export-reference",
            hint="leave it out, or measure without --shard",
        )
    check_file(out, force=force, resume=resume)
    if export_reference is not None:
        check_file(export_reference, force=force)
    compile_ahead()

    from quantaudit.measure.profile import profile_bytes
    from quantaudit.pipeline.files import open_files
    from quantaudit.settings import Settings

    settings = Settings(model=model, corpus=corpus, measure=measure)
    if measure.attention == "auto" and export_reference is not None:
        # The paper's numbers are of models as they load.
        settings = settings.changed(attention="native")
    files = open_files(settings)
    state = RunState(Output(option="--out", path=out), resume=resume, say=console.say)
    with console.shared_progress(forks=memory_budget is None and export_reference is None) as stages:
        # From here on torch is needed.
        from quantaudit.pipeline.measure import measure as run_measure
        from quantaudit.pipeline.measure import measure_as_published

        how: Any = {"files": files, "stages": stages, "say": console.say, "state": state, "memory": memory}
        published = None
        if export_reference is None:
            profile = run_measure(settings, shard=part, **how)
        else:
            profile, published = measure_as_published(settings, **how)
        with file_set(out.parent) as written:
            written.write(out.name, profile_bytes(profile))
            if export_reference is not None and published is not None:
                written.write_outside(export_reference, published.encode("utf-8"))
        state.done()
    held = profile.provenance.shards
    console.say(f"wrote {out}" + (f": {held.named()}, to be merged with the others" if held else ""))
    if export_reference is not None:
        console.say(f"wrote {export_reference}")
