"""What running block by block costs by itself: batches in lock-step over plain passes, with all weights in memory.

Runs of both are interleaved. Exits with 1 where the median ratio is above 1.05, or logits differ in a bit.

    python benchmarks/lockstep.py [MODEL] [--runs N] [--samples N] [--dtype T]
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Annotated

import torch
import typer
from overhead import seconds
from torch import Tensor

from quantaudit.model.blockwise.budget import UNLIMITED
from quantaudit.model.blockwise.input_store import InputStore
from quantaudit.model.blockwise.lockstep import run_in_lockstep
from quantaudit.model.forward.batches import Batch, batches, forward, last_logit_only
from quantaudit.pipeline.prepare import prepare
from quantaudit.settings import Settings

MOST = 1.05


def main(
    model: Annotated[str, typer.Argument()] = "demo", runs: int = 5, samples: int = 60, dtype: str = "auto"
) -> None:
    """Print every pair of runs, and the median of their ratios."""
    subject = prepare(Settings.of(model=model, samples=samples, dtype=dtype))
    loaded, corpus = subject.loaded, subject.corpus
    made = partial(batches, corpus.samples, device=loaded.device)
    logits: dict[str, dict[int, Tensor]] = {"plain": {}, "in lock-step": {}}

    def run(name: str, batch: Batch) -> None:
        logits[name][batch.samples[0].index] = forward(loaded.model, batch)[0, -1]

    def plain() -> None:
        for batch in made():
            run("plain", batch)

    def in_lockstep() -> None:
        with InputStore(loaded.model, UNLIMITED) as store:
            blocks = loaded.architecture.blocks
            run_in_lockstep(loaded.model, blocks, made(), partial(run, "in lock-step"), store=store)

    ratios = []
    with subject.computed(), torch.no_grad(), last_logit_only(loaded.model):
        plain()
        for _ in range(runs):
            alone, together = seconds(plain), seconds(in_lockstep)
            ratios.append(together / alone)
            print(f"plain {alone:6.2f} s   in lock-step {together:6.2f} s   ratio {ratios[-1]:.3f}", flush=True)
    same = all(torch.equal(logits["in lock-step"][index], row) for index, row in logits["plain"].items())
    print(f"median ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); logits equal: {same}")
    raise typer.Exit(int(median(ratios) > MOST or not same))


if __name__ == "__main__":
    typer.run(main)
