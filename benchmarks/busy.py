"""What busy processes cost: seconds of measuring alone and among them, by how waiting threads are made to wait.

Every setting runs in a process of its own, alone and busy in turn. A fair share of two cores for two threads among four
other processes is 3.0 times the time alone, among two 2.0 times. `forks` is what commands do with a small model:
processes of one thread share the samples.

    python benchmarks/busy.py [MODEL] [--samples N] [--others N] [--dtype D] [--setting NAME …]
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from time import perf_counter
from typing import Annotated

import typer

FORKS = "forks"
SETTINGS: dict[str, dict[str, str]] = {
    "libgomp's default": {"GOMP_SPINCOUNT": "300000"},
    "spin 30,000": {"GOMP_SPINCOUNT": "30000"},
    "spin 10,000": {"GOMP_SPINCOUNT": "10000"},
    "spin 3,000": {"GOMP_SPINCOUNT": "3000"},
    "spin 1,000": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    FORKS: {},
}


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    samples: int = 6,
    others: int = 4,
    runs: int = 2,
    dtype: str = "auto",
    setting: list[str] | None = None,
    child: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print seconds alone and among busy processes, and their ratio, for each setting."""
    if child:
        time_measuring(model, samples, others, runs, dtype, forks=child == FORKS)
        return
    for name in setting or SETTINGS:
        print(f"{name}: ", end="", flush=True)
        arguments = [model, f"--samples={samples}", f"--others={others}", f"--runs={runs}", f"--dtype={dtype}"]
        command = [sys.executable, __file__, *arguments, "--child", name]
        subprocess.run(command, env=os.environ | SETTINGS[name], check=True)


def time_measuring(model: str, samples: int, others: int, runs: int, dtype: str, *, forks: bool) -> None:
    """In a process with its own threads: the best of some runs alone, and of as many among busy processes."""
    from quantaudit.common.ranks.forked import forks_allowed
    from quantaudit.pipeline.passes import measure_inputs
    from quantaudit.pipeline.prepare import prepare
    from quantaudit.settings import Settings

    subject = prepare(Settings.of(model=model, samples=samples, dtype=dtype))

    def seconds() -> float:
        start = perf_counter()
        with forks_allowed() if forks else nullcontext():
            measure_inputs(subject)
        return perf_counter() - start

    seconds()
    alone, busy = [], []
    for _ in range(runs):
        alone.append(seconds())
        with busy_processes(others):
            busy.append(seconds())
    print(
        f"{subject.corpus.info.tokens:,} tokens, alone {min(alone):.1f} s, among {others} busy processes "
        f"{min(busy):.1f} s, {min(busy) / min(alone):.1f} times"
    )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without a pause, for as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    found = [context.Process(target=spin, daemon=True) for _ in range(count)]
    for process in found:
        process.start()
    try:
        yield
    finally:
        for process in found:
            process.kill()
            process.join()


def spin() -> None:
    """Never returns."""
    while True:
        pass


if __name__ == "__main__":
    typer.run(main)
