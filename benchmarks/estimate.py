"""The time that a report says beforehand against what it takes, by stage: where the weights of `cost.py` come from.

    python benchmarks/estimate.py [MODEL] [--samples N] [--max-length N] [--evaluation-tokens N] [--dtype D]
        [--device D] [--memory-budget SIZE] [--cpu-time]

--cpu-time counts the process's own seconds, for a machine that is shared; run it with OMP_NUM_THREADS=1.

Exits with 1 where the whole is off by more than a factor of 1.5.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated

import typer

from quantaudit.common.progress import Job, Snapshot, Stage
from quantaudit.common.threads import set_up_threads

LIMIT = 1.5


class Ended:
    """Keeps how long each stage took."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}

    def begin(self, now: Snapshot) -> None:
        """Nothing."""

    def end(self, now: Snapshot) -> None:
        """A stage that was run twice counts once, with both times."""
        self.stages[now.title] = self.stages.get(now.title, 0.0) + now.stage_seconds


class Announced(Job):
    """Keeps what was announced, and when."""

    stages: list[Stage]
    at: float

    def expect(self, stages: list[Stage]) -> None:  # type: ignore[override]
        """The same, kept."""
        self.stages, self.at = list(stages), self.clock()
        super().expect(stages)


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    samples: int | None = None,
    max_length: int = 2048,
    evaluation_tokens: int = 4096,
    dtype: str = "auto",
    device: str = "auto",
    memory_budget: str | None = None,
    cpu_time: bool = False,
) -> None:
    """Print expected and actual seconds of every stage, and of the whole."""
    set_up_threads()

    from quantaudit.card.render import write_card
    from quantaudit.model.blockwise.memory import parse_size
    from quantaudit.pipeline.audit import audit
    from quantaudit.pipeline.plan import speed
    from quantaudit.settings import Settings

    clock = process_time if cpu_time else perf_counter
    speed.perf_counter = clock  # type: ignore[attr-defined]
    ended = Ended()
    job = Announced(ended, clock)
    settings = Settings.of(
        model=model,
        samples=samples,
        max_length=max_length,
        evaluation_tokens=evaluation_tokens,
        dtype=dtype,
        device=device,
    )
    memory = None if memory_budget is None else parse_size(memory_budget, "--memory-budget")
    with tempfile.TemporaryDirectory() as folder:
        result = audit(settings, stages=job, say=print, memory=memory)
        write_card(result.card, Path(folder))
    job.close()
    took = clock() - job.at
    said = sum(stage.seconds for stage in job.stages)
    for stage in job.stages:
        print(line(stage.title, stage.seconds, ended.stages.get(stage.title, 0.0)))
    print(line("the whole", said, took))
    if not 1 / LIMIT <= took / said <= LIMIT:
        raise typer.Exit(1)


def line(title: str, expected: float, actual: float) -> str:
    """One row: seconds expected and taken, and their ratio."""
    return f"{title:<30} expected {expected:7.1f} s   took {actual:7.1f} s   {actual / expected:.2f}"


if __name__ == "__main__":
    typer.run(main)
