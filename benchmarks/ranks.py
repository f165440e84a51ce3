"""Two ranks against one, a thread each: throughput of a report, and the most that two cores let it be.

Each round runs one rank alone, two ranks under `torchrun`, and two reports that know nothing of each other at a time,
whose slowdown is what the machine itself takes from two. Seconds are those that the cards hold for measuring and
simulating; simulation and profile must be the same whatever ran. Exits with 1 where two ranks have less than 1.7 times
the throughput of one, or where a number differs.

    python benchmarks/ranks.py [MODEL] [--rounds N] [--samples N] [--evaluation-tokens N] [--schemes A,B]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

AIM = 1.7
STAGES = ("measuring", "simulating")
ALONE = (sys.executable, "-m", "quantaudit")
TEAM = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "quantaudit")


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    rounds: int = 3,
    samples: int = 48,
    evaluation_tokens: int = 1024,
    schemes: str = "standard",
) -> None:
    """Print the ratios of every round, and their medians."""
    line = ("report", model, "--samples", str(samples), "--evaluation-tokens", str(evaluation_tokens))
    options = (*line, "--schemes", schemes, "--force", "--out")
    ratios, limits, differ = [], [], False
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        for _ in range(rounds):
            run([(*ALONE, *options, str(folder / "one"))])
            run([(*TEAM, *options, str(folder / "two"))])
            run([(*ALONE, *options, str(folder / side)) for side in ("left", "right")])
            cards = {side: card(folder / side) for side in ("one", "two", "left", "right")}
            spent = {side: sum(own["environment"]["timings"][stage] for stage in STAGES) for side, own in cards.items()}
            beside = (spent["left"] + spent["right"]) / 2
            ratios.append(spent["one"] / spent["two"])
            limits.append(2 * spent["one"] / beside)
            found = [key for key in ("simulation", "profile_sha256") if cards["one"][key] != cards["two"][key]]
            differ = differ or bool(found)
            print(
                f"one rank {spent['one']:6.1f} s   two {spent['two']:6.1f} s   ratio {ratios[-1]:.2f}   "
                f"two reports at a time {beside:6.1f} s each, limit {limits[-1]:.2f}   "
                + (f"differs: {', '.join(found)}" if found else "equal"),
                flush=True,
            )
    ratio = median(ratios)
    print(f"median {ratio:.2f} of a limit of {median(limits):.2f} (wanted: {AIM})")
    raise typer.Exit(1 if differ or ratio < AIM else 0)


def run(commands: list[tuple[str, ...]]) -> None:
    """All at a time, to their ends; what they say goes to this process's error stream where one fails."""
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(command, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for command in commands
    ]
    for process in started:
        said, _ = process.communicate()
        if process.returncode:
            sys.stderr.write(said)
            raise typer.Exit(2)


def card(folder: Path) -> dict[str, Any]:
    """The card that a report wrote."""
    held: dict[str, Any] = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    return held


if __name__ == "__main__":
    typer.run(main)
