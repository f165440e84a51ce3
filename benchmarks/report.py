"""What a whole report costs: seconds and peak memory by stage, in bare forward passes over the same corpus.

The bare forward runs in the same process, in the same arithmetic, with the logits of the last token alone, and with all
threads; what is measured and simulated is shared by forks where the command would. Five schemes are priced; a report's
own two, and their mixture, are simulated on the whole model (with --all, the five of them). Memory is that of the first
process.

    python benchmarks/report.py [MODEL] [--corpus C] [--samples N] [--evaluation-tokens N] [--dtype D] [--device D]

Exits with 1 where a report takes longer than 3 bare forwards and 20 seconds, or more memory than --peak says (GiB).
"""

from __future__ import annotations

import resource
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any
from unittest.mock import patch

import typer

FORWARDS, SECONDS = 3.0, 20.0
OTHERS = ("fp8_e4m3_static_per_tensor", "fp8_e4m3_dynamic_per_token", "int8_weights")
"""Schemes in addition to those of every report."""


@dataclass(slots=True)
class Stages:
    """Stages one after the other: (name, seconds, peak resident memory in bytes)."""

    name: str
    start: float = field(default_factory=perf_counter)
    done: list[tuple[str, float, int]] = field(default_factory=list)

    def __call__(self, title: str, *_total: Any, **_unit: Any) -> Any:
        """Ends the stage before; gives what advances the next, which is not watched."""
        self.done.append((self.name, perf_counter() - self.start, peak()))
        self.name, self.start = title, perf_counter()
        return lambda amount=1: None


def peak() -> int:
    """Highest resident memory since the last call, where the system can say, else since the start of the process."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if reset.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        reset.write_text("5")
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    corpus: str = "builtin",
    samples: int | None = None,
    evaluation_tokens: int = 4096,
    dtype: str = "auto",
    device: str = "auto",
    peak_gib: Annotated[float | None, typer.Option("--peak")] = None,
    every: Annotated[bool, typer.Option("--all", help="simulate all five schemes on the whole model")] = False,
) -> None:
    """Print the share of each stage, and the whole against its target."""
    stages = Stages("importing", start=perf_counter())
    import torch

    from quantaudit.card.build import build_card
    from quantaudit.card.render import write_card
    from quantaudit.common.ranks.forked import forks_allowed
    from quantaudit.measure.profile import save_profile
    from quantaudit.model.forward.batches import batches, forward, last_logit_only
    from quantaudit.pipeline.passes import measure_inputs, simulate_inputs
    from quantaudit.pipeline.prepare import prepare
    from quantaudit.policy import load_policy
    from quantaudit.settings import Settings
    from quantaudit.simulate.logits.baselines import baseline_plans
    from quantaudit.simulate.tensors import scale_rows

    stages("loading")
    settings = Settings.of(
        model=model,
        corpus=corpus,
        samples=samples,
        evaluation_tokens=evaluation_tokens,
        dtype=dtype,
        device=device,
        schemes=OTHERS,
    )
    subject = prepare(settings)
    loaded = subject.loaded
    stages("bare forward (reference)")
    with subject.computed(), torch.no_grad(), last_logit_only(loaded.model):
        for batch in batches(subject.corpus.samples, device=loaded.device):
            forward(loaded.model, batch)
    stages("")
    plans = baseline_plans if every else default_plans
    with forks_allowed(), patch("quantaudit.simulate.run.baseline_plans", plans):
        profile = measure_inputs(subject, stages)
        simulation = simulate_inputs(subject, profile, stages)
    stages("building the card")
    card = build_card(profile, scale_rows(profile), simulation, load_policy("default"), timings={})
    stages("drawing and writing the card")
    with tempfile.TemporaryDirectory() as folder:
        write_card(card, Path(folder))
        save_profile(profile, Path(folder) / "profile.safetensors")
    stages("")
    raise typer.Exit(show(stages, loaded.info.name, subject.corpus.info.tokens, peak_gib))


def default_plans(experiment: Any, effects: Any) -> Any:
    """The recipes that a report simulates without further options."""
    from quantaudit.quant.schemes import SCHEMES
    from quantaudit.simulate.logits.baselines import baseline_plans

    schemes = [scheme for scheme in experiment.schemes if scheme.name in SCHEMES]
    return baseline_plans(replace(experiment, schemes=schemes), effects)


def show(stages: Stages, name: str, tokens: int, peak_gib: float | None) -> int:
    """Print the table; 1 where a target is missed."""
    rows = [row for row in stages.done if row[0]]
    bare = next(seconds for title, seconds, _ in rows if "reference" in title)
    whole = sum(seconds for title, seconds, _ in rows if "reference" not in title)
    print(f"{name}, {tokens:,} tokens; bare forward {bare:.1f} s")
    for title, seconds, memory in rows:
        share = "" if "reference" in title else f"{seconds / whole:6.1%}"
        print(f"{title:32} {seconds:7.1f} s {seconds / bare:6.2f} forwards {share:>7}  peak {memory / 2**30:5.2f} GiB")
    highest, target = max(memory for _, _, memory in rows) / 2**30, FORWARDS * bare + SECONDS
    print(f"{'whole report':32} {whole:7.1f} s, target {target:.1f} s; peak {highest:.2f} GiB")
    return int(whole > target or (peak_gib is not None and highest > peak_gib))


if __name__ == "__main__":
    typer.run(main)
