"""How much the measuring pass costs: its time as a ratio to a bare forward pass over the same samples.

Runs of both are interleaved, so that a machine whose speed drifts does not favour either. Every site is tapped.

    python benchmarks/overhead.py [MODEL] [--runs N] [--samples N] [--batch-size N] [--device D]
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Annotated

import torch
import typer

from quantaudit.measure import measure
from quantaudit.model.drive import batches, forward
from quantaudit.pipeline import Settings, prepare


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call, with the device drained before and after."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    runs: int = 5,
    samples: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
) -> None:
    """Print the ratio of every pair of runs, and their median."""
    subject = prepare(Settings(model=model, samples=samples, batch_size=batch_size, device=device))
    loaded, corpus = subject.loaded, subject.corpus

    def bare() -> None:
        for batch in batches(corpus.samples, batch_size, pad=0, device=loaded.device):
            forward(loaded.model, batch)

    def measured() -> None:
        measure(loaded, corpus, batch_size=batch_size)

    for work in (bare, measured):
        seconds(work)
    ratios = []
    print(f"{loaded.info.name} on {loaded.device}, {corpus.info.samples} samples, {corpus.info.tokens:,} tokens")
    for run in range(runs):
        # The order alternates too: what runs second finds warmer caches.
        first, second = (bare, measured) if run % 2 == 0 else (measured, bare)
        times = {first: seconds(first), second: seconds(second)}
        ratios.append(times[measured] / times[bare])
        print(f"bare {times[bare]:6.2f} s   measuring {times[measured]:6.2f} s   ratio {ratios[-1]:.2f}")
    print(f"median ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    typer.run(main)
