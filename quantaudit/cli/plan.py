"""`quantaudit plan`: what a report of a model will need, from its configuration alone."""

from __future__ import annotations

from typing import Annotated

import typer

from quantaudit.cli import options
from quantaudit.settings import CorpusSpec, MeasureOptions, ModelSpec, SimulateOptions

EXAMPLE = "Example: quantaudit plan Qwen/Qwen2.5-1.5B-Instruct --memory-budget 8GiB"


@options.flattened
def run(
    model: ModelSpec = ModelSpec(),
    corpus: CorpusSpec = CorpusSpec(),
    measure: MeasureOptions = MeasureOptions(),
    simulate: SimulateOptions = SimulateOptions(),
    memory_budget: options.MemoryBudget = None,
    ranks: Annotated[
        int, typer.Option(metavar="N", min=1, help="Processes on one machine that share the work and the memory.")
    ] = 1,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(metavar="N", help="Speed of one process, in forward passes without logits, instead of a probe."),
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(metavar="N", help="The same in 10¹² operations a second that it reaches.")
    ] = None,
    output: Annotated[str, typer.Option("--format", metavar="FORMAT", help="text or json, to stdout.")] = "text",
) -> None:
    """Say what `report` will need: memory, disk, time. Exit 0 where it runs as asked, 1 where it does not."""
    from quantaudit.cli import console
    from quantaudit.common.choices import check_choice
    from quantaudit.common.logs import stdout_to_stderr
    from quantaudit.corpus.load import load_corpus
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.model.loading.checkpoint import locate
    from quantaudit.recipe.parse import check_recipe
    from quantaudit.settings import Settings

    check_choice("format", output, ("text", "json"))
    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    for path in simulate.recipes:
        check_recipe(path)
    rows = load_corpus(corpus.corpus, samples=corpus.samples, seed=corpus.seed)
    checkpoint = locate(model.model, revision=model.revision, weights=False)

    # From here on torch is needed.
    from quantaudit.pipeline.plan.run import Machine, plan

    machine = Machine(memory=memory, ranks=ranks, tokens_per_second=tokens_per_second, tflops=tflops)
    settings = Settings(model=model, corpus=corpus, measure=measure, simulate=simulate)
    with stdout_to_stderr():
        planned = plan(settings, checkpoint, rows, machine)
    if output == "json":
        from quantaudit.common.printing.inert import inert_json
        from quantaudit.common.printing.streams import write_results

        write_results(inert_json(planned.to_json()))
    else:
        from quantaudit.cli.output.plan import show

        show(planned, console.out)
    raise typer.Exit(0 if planned.chosen else 1)
