"""How often the tail's prediction interval holds the largest of ten times as many new samples.

python benchmarks/tail_coverage.py [--trials N]
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np
import typer
from numpy.random import Generator
from numpy.typing import NDArray

from quantaudit.stats.maxima.tail import HORIZON, fit

DISTRIBUTIONS: dict[str, Callable[[Generator, int], NDArray[np.float64]]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "Laplace": lambda rng, n: rng.laplace(size=n),
    "Student t3": lambda rng, n: rng.standard_t(3, size=n),
    "lognormal": lambda rng, n: rng.lognormal(size=n),
}


def trial(draw: Callable[[Generator, int], NDArray[np.float64]], n: int, rng: Generator) -> tuple[float, float, float]:
    """Low end, high end, and what the largest of HORIZON·n fresh samples really was."""
    tail = fit(draw(rng, n))
    assert tail is not None
    return tail.low, tail.high, float(draw(rng, HORIZON * n).max())


def main(trials: int = 1000, seed: int = 2026) -> None:
    """Print coverage by distribution and number of samples."""
    print("| samples | distribution | covered | missed below | missed above | high end over the truth, median |")
    print("|--:|:--|--:|--:|--:|--:|")
    for n in (1000, 200):
        for name, draw in DISTRIBUTIONS.items():
            rng = np.random.default_rng(seed)
            rows = [trial(draw, n, rng) for _ in range(trials)]
            below = sum(truth < low for low, _, truth in rows) / trials
            above = sum(truth > high for _, high, truth in rows) / trials
            ratio = median(high / truth for _, high, truth in rows)
            print(f"| {n:,} | {name} | {1 - below - above:.1%} | {below:.1%} | {above:.1%} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
