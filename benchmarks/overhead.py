"""How much the measuring pass costs: its time as a ratio to a bare forward pass without logits over the same samples.

Runs of both are interleaved, so that a machine whose speed drifts does not favour either. Every site is tapped.

    python benchmarks/overhead.py [MODEL] [--runs N] [--samples N] [--batch-size N] [--device D] [--dtype T] [--shares]
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Annotated
from unittest.mock import patch

import torch
import typer

from quantaudit.measure.collector import StatisticsCollector
from quantaudit.measure.run import measure
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.pipeline.run import Settings, Subject, prepare


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
    dtype: str = "auto",
    shares: Annotated[bool, typer.Option(help="also print what each part of a tensor's statistics costs")] = False,
) -> None:
    """Print the ratio of every pair of runs, and their median."""
    settings = Settings(model=model, samples=samples, batch_size=batch_size, device=device, dtype=dtype)
    subject = prepare(settings)
    loaded, corpus = subject.loaded, subject.corpus

    def bare() -> None:
        """No logits, and the attention that measuring runs."""
        with last_logit_only(loaded.model):
            for batch in batches(corpus.samples, batch_size, pad=0, device=loaded.device):
                forward(loaded.model, batch)

    def measured() -> None:
        measure(loaded, corpus, batch_size=batch_size)

    with eager_attention(loaded.model):
        for work in (bare, measured):
            seconds(work)
        ratios = []
        print(
            f"{loaded.info.name} on {loaded.device} in {loaded.info.dtype}, {torch.get_num_threads()} threads, "
            f"{corpus.info.samples} samples, {corpus.info.tokens:,} tokens"
        )
        for run in range(runs):
            # The order alternates too: what runs second finds warmer caches.
            first, second = (bare, measured) if run % 2 == 0 else (measured, bare)
            times = {first: seconds(first), second: seconds(second)}
            ratios.append(times[measured] / times[bare])
            print(f"bare {times[bare]:6.2f} s   measuring {times[measured]:6.2f} s   ratio {ratios[-1]:.2f}")
        print(f"median ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        if shares:
            print_shares(bare, lambda: gather_only(subject, batch_size))


def gather_only(subject: Subject, batch_size: int) -> float:
    """Seconds that one pass spends inside the taps, of hooks alone and of statistics."""
    inside = 0.0
    receive = StatisticsCollector.receive

    def timed(self: StatisticsCollector, site: str, tensor: torch.Tensor) -> None:
        nonlocal inside
        start = perf_counter()
        receive(self, site, tensor)
        inside += perf_counter() - start

    with patch.object(StatisticsCollector, "receive", timed):
        measure(subject.loaded, subject.corpus, batch_size=batch_size)
    return inside


def print_shares(bare: Callable[[], object], gather: Callable[[], float]) -> None:
    """What parts of a tensor's statistics cost, as shares of a bare pass: kernels are replaced by ones that do less."""
    from quantaudit.stats import host

    whole = seconds(bare)
    rows = {"all of it": gather()}
    init = host.HostRecorder.__init__

    def without(*names: str) -> Callable[[host.HostRecorder], None]:
        def made(self: host.HostRecorder) -> None:
            init(self)
            self.parallel = None
            self.threads = 1
            for name in names:
                setattr(self, name, lambda _address: None)

        return made

    for title, names in (
        ("on one thread", ()),
        ("without histograms and maxima", ("count", "finish")),
        ("without extremes of samples, peaks, massive activations", ("finish",)),
    ):
        with patch.object(host.HostRecorder, "__init__", without(*names)):
            rows[title] = gather()
    for title, taken in rows.items():
        print(f"{title:60} {taken / whole:6.1%} of a bare pass")


if __name__ == "__main__":
    typer.run(main)
