"""Whether a report's cost is linear: processor seconds and peak memory over tokens and over layers, block by block.

Random checkpoints are made on the spot and removed. Each series has one memory budget, the least that `quantaudit plan`
says for its largest report; one thread. Exits with 1 where seconds leave their straight line by more than a tenth of
the largest, or where the peak of the largest is more than a tenth beyond the budget and the peak of the smallest: up
to its budget a report keeps what it need not write to disk.

    python benchmarks/linear.py [--only tokens,layers]
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from plan import Setting, planned, report
from scale import Shape, make

from quantaudit.model.blockwise.memory import size_text

LENGTH = 64
"""Tokens of each sample. A quarter of all are evaluated."""
OFF_THE_LINE, GROWTH = 0.1, 0.1
HIDDEN, INTERMEDIATE = 512, 1408


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A report: how many layers, and how many samples."""

    layers: int
    samples: int

    @property
    def shape(self) -> Shape:
        """Of its checkpoint."""
        return Shape(layers=self.layers, hidden=HIDDEN, intermediate=INTERMEDIATE)

    @property
    def options(self) -> tuple[str, ...]:
        """Of its report."""
        sizes = {"samples": self.samples, "max-length": LENGTH, "evaluation-tokens": self.samples * LENGTH // 4}
        return tuple(word for name, value in sizes.items() for word in (f"--{name}", str(value)))


SERIES = {
    "tokens": [Point(layers=24, samples=samples) for samples in (32, 64, 128, 256)],
    "layers": [Point(layers=layers, samples=64) for layers in (16, 24, 32, 48)],
}
"""The last of each is the largest."""


def main(
    only: Annotated[str, typer.Option(help="names of series, with commas")] = ",".join(SERIES),
    folder: Annotated[Path | None, typer.Option(help="where checkpoints are made")] = None,
) -> None:
    """Print one row for each report, and one for each line."""
    wrong = 0
    for name in only.split(","):
        print(f"| {name} | peak | seconds of the processor |\n|---:|---:|---:|", flush=True)
        found, budget = [], 0
        for point in reversed(SERIES[name]):
            place = Path(tempfile.mkdtemp(prefix="quantaudit-linear-", dir=folder))
            try:
                make(place / "model", point.shape)
                budget = budget or least_budget(place / "model", point)
                peak, _, busy = report(place, Setting(shape=point.shape, budget=str(budget), options=point.options))
            finally:
                shutil.rmtree(place)
            size = point.layers if name == "layers" else point.samples * LENGTH
            found.append((size, peak, busy))
            print(f"| {size:,} | {size_text(peak)} | {busy:.0f} |", flush=True)
        wrong += not judge(found, budget)
    raise typer.Exit(int(wrong > 0))


def least_budget(model: Path, point: Point) -> int:
    """Bytes of the smallest --memory-budget under which this report runs block by block."""
    plan = planned(model, ["--device", "cpu", *point.options])
    return next(int(way["least_budget"]) for way in plan["ways"] if way["name"] == "block by block")


def judge(found: Sequence[tuple[int, int, float]], budget: int) -> bool:
    """Print how far seconds are off a straight line, and what the peak grows to; whether both are within their limits.

    found: (size, bytes, seconds).
    """
    sizes, peaks, seconds = (np.array(column, float) for column in zip(*found, strict=True))
    slope, start = np.polyfit(sizes, seconds, 1)
    off = float(np.abs(slope * sizes + start - seconds).max() / seconds.max())
    growth = float(peaks[sizes.argmax()] / max(peaks[sizes.argmin()], budget) - 1)
    print(f"\n{start:.0f} s and {slope:.4g} s each, {off:.1%} off the line at most; ", end="")
    print(f"peak {growth:+.1%} beyond a budget of {size_text(budget)} and the smallest\n", flush=True)
    return off <= OFF_THE_LINE and growth <= GROWTH


if __name__ == "__main__":
    typer.run(main)
