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
from quantaudit.model.forward.batches import BatchLimit, batches, forward, last_logit_only
from quantaudit.pipeline.prepare import AuditInputs, prepare
from quantaudit.settings import Settings
from quantaudit.stats.kernels import host
from quantaudit.stats.kernels.host_count import CHANNELS, EXTREMES, HISTOGRAM, MASSIVE, PEAKS
from quantaudit.stats.kernels.host_kernel import compile_record

STATISTICS = {
    "hooks, labels, threads": 0,
    "histogram": HISTOGRAM,
    "channels' maxima": CHANNELS,
    "extremes of samples": EXTREMES,
    "massive activations": MASSIVE,
    "peaks and their medians": PEAKS,
}
"""What is added one after the other: later ones build on earlier ones."""


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
    shares: Annotated[bool, typer.Option(help="also print what each statistic costs")] = False,
) -> None:
    """Print the ratio of every pair of runs, and their median."""
    settings = Settings.of(model=model, samples=samples, batch_size=batch_size, device=device, dtype=dtype)
    subject = prepare(settings)
    loaded, corpus = subject.loaded, subject.corpus

    def bare() -> None:
        """No logits, and the arithmetic and attention that measuring runs."""
        with last_logit_only(loaded.model):
            for batch in batches(corpus.samples, BatchLimit(batch_size), pad=0, device=loaded.device):
                forward(loaded.model, batch)

    def measured() -> None:
        measure(loaded, corpus, batch=BatchLimit(batch_size))

    with subject.computed(), eager_attention(loaded.model):
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
            print_shares(subject, bare, batch_size, runs)


def seconds_in_taps(subject: AuditInputs, batch_size: int, parts: int) -> float:
    """Seconds that one pass spends inside the taps with some of the statistics."""
    inside = 0.0
    receive = StatisticsCollector.receive
    compiled = compile_record(parts)

    def timed(self: StatisticsCollector, site: str, tensor: torch.Tensor) -> None:
        nonlocal inside
        start = perf_counter()
        receive(self, site, tensor)
        inside += perf_counter() - start

    with patch.object(StatisticsCollector, "receive", timed), patch.object(host, "_compiled", lambda: compiled):
        measure(subject.loaded, subject.corpus, batch=BatchLimit(batch_size))
    return inside


def print_shares(subject: AuditInputs, bare: Callable[[], object], batch_size: int, runs: int) -> None:
    """What each statistic adds inside the taps, as shares of bare passes that are run in between, and the rest.

    Statistics are added one by one, each compiled together with those above it: the first share is of the hooks'
    Python, labels and threads alone. The compiled code is for main memory.
    """
    bare_times, whole_times, parts = [], [], 0
    rows: dict[str, list[float]] = {}
    for run in range(runs + 1):  # the first warms up, and compiles
        parts = 0
        for title, part in STATISTICS.items():
            parts |= part
            taken = seconds_in_taps(subject, batch_size, parts)
            if run:
                rows.setdefault(title, []).append(taken)
        if run:
            bare_times.append(seconds(bare))
            whole_times.append(seconds(lambda: measure(subject.loaded, subject.corpus, batch=BatchLimit(batch_size))))
    base, before = median(bare_times), 0.0
    for title, times in rows.items():
        print(f"{title:60} {(median(times) - before) / base:6.1%} of a bare pass")
        before = median(times)
    print(f"{'inside the taps, together':60} {before / base:6.1%}")
    outside = median(whole_times) - base - before
    print(f"{'outside: PyTorch calling hooks, results, colder caches':60} {outside / base:6.1%}")


if __name__ == "__main__":
    typer.run(main)
