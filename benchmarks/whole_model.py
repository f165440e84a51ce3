"""How much scoring a recipe on the whole model costs, in bare forward passes over the same evaluation tokens.

All recipes share one base forward, and those that quantize weights alike share that work too: what three of them take
beyond one is twice the cost of one alone. Runs are interleaved, so that a machine whose speed drifts favours none.

    python benchmarks/whole_model.py [MODEL] [--runs N] [--samples N] [--evaluation-tokens N] [--device D]

Exits with 1 where the median of a scheme lies above the target.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from overhead import seconds

from quantaudit.measure.run import measure
from quantaudit.model.forward.batches import batches, forward
from quantaudit.pipeline.prepare import prepare
from quantaudit.quant.schemes import FP8_STATIC, INT8_DYNAMIC, INT8_STATIC
from quantaudit.settings import Settings
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.logits.score_plans import score_plans
from quantaudit.simulate.quantized.plan import Plan

TARGET = 1.3


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    runs: int = 5,
    samples: int = 24,
    evaluation_tokens: int = 1024,
    device: str = "auto",
) -> None:
    """Print the cost of each scheme in bare forwards: medians over interleaved runs."""
    subject = prepare(Settings.of(model=model, samples=samples, device=device))
    loaded, corpus = subject.loaded, subject.corpus
    architecture = loaded.architecture
    with subject.computed():
        profile = measure(loaded, corpus)
    chosen = select(corpus.samples, evaluation_tokens)

    schemes = (INT8_STATIC, INT8_DYNAMIC, FP8_STATIC)
    ranges = InputRanges.measured(profile, schemes, architecture.groups)
    experiment = Experiment(
        model=loaded.model, architecture=architecture, samples=chosen, schemes=schemes, ranges=ranges
    )
    inside = [group.name for group in architecture.groups if group.layer is not None]
    plans = [
        Plan.of_groups(experiment, name=scheme.name, title=scheme.title, schemes=dict.fromkeys(inside, scheme))
        for scheme in schemes
    ]

    @torch.no_grad()
    def bare() -> None:
        for batch in batches(chosen, device=loaded.device):
            forward(loaded.model, batch)

    def scored(plan: Plan, times: int) -> None:
        score_plans(loaded.model, chosen, [plan] * times, blocks=architecture.blocks)

    work: dict[str, Callable[[], object]] = {"bare": bare}
    for plan in plans:
        work |= {f"{plan.name} {times}": partial(scored, plan, times) for times in (1, 3)}
    times: dict[str, list[float]] = {name: [] for name in work}
    order = random.Random(0)
    with subject.computed():
        for run in work.values():
            run()
        for _ in range(runs):
            for name in order.sample(sorted(work), len(work)):
                times[name].append(seconds(work[name]))
    middle = {name: median(spent) for name, spent in times.items()}
    tokens = sum(len(sample.ids) for sample in chosen)
    print(f"{loaded.info.name} on {loaded.device}, {tokens:,} tokens; bare forward {middle['bare']:.2f} s")
    missed = False
    for plan in plans:
        pairs = zip(times[f"{plan.name} 1"], times[f"{plan.name} 3"], strict=True)
        ratio = median((three - one) / 2 for one, three in pairs) / middle["bare"]
        missed |= ratio > TARGET
        print(f"{plan.title:28} {ratio:.2f} bare forwards")
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
