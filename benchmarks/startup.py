"""How fast the command line answers: wall time of `quantaudit --help` in a fresh process.

python benchmarks/startup.py [--runs N]
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median
from time import perf_counter

import typer


def main(runs: int = 10) -> None:
    """Print the median, least and greatest time of `quantaudit --help`."""
    times = []
    for _ in range(runs + 1):
        start = perf_counter()
        subprocess.run([sys.executable, "-m", "quantaudit", "--help"], check=True, capture_output=True)
        times.append(perf_counter() - start)
    times = times[1:]  # the first run fills the file cache
    print(f"quantaudit --help: median {median(times):.2f} s ({min(times):.2f} to {max(times):.2f}), {runs} runs")


if __name__ == "__main__":
    typer.run(main)
