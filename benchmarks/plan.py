"""What `quantaudit plan` says of memory and time against what `quantaudit report` takes, for models made on the spot.

Each plan is made, its speed probed, right before its report runs, both with one thread and by the clock of their
processor, since others may use the machine. Of several ranks, the one that takes most counts. Exits with 1 where memory
is off by more than 15 %, or time by more than a factor of 1.5.

    python benchmarks/plan.py [--only NAMES] [--folder DIR]

--large prints the table of docs/scale.md instead: what models of 70 billion to a trillion parameters need.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import transformers
import typer
from scale import Shape, make

from quantaudit.model.blockwise.memory import size_text

MEMORY, TIME = 0.15, 1.5
LARGE: dict[str, transformers.PreTrainedConfig] = {
    "like Llama-3-70B": transformers.LlamaConfig(
        hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
        vocab_size=128256, max_position_embeddings=8192, dtype="bfloat16",
    ),
    "like Qwen3-235B-A22B": transformers.Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, num_key_value_heads=4, head_dim=128,
        vocab_size=151936, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
        max_position_embeddings=40960, dtype="bfloat16",
    ),
    "like Kimi-K2, 1T": transformers.DeepseekV3Config(
        hidden_size=7168, intermediate_size=18432, num_hidden_layers=61, num_attention_heads=64, num_key_value_heads=64,
        vocab_size=163840, n_routed_experts=384, num_experts_per_tok=8, moe_intermediate_size=2048, n_group=1,
        topk_group=1, first_k_dense_replace=1, n_shared_experts=1, kv_lora_rank=512, q_lora_rank=1536,
        qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, max_position_embeddings=131072, dtype="bfloat16",
    ),
}  # fmt: skip
"""Configurations with the sizes of published models, which `plan` is given alone."""
LARGE_OPTIONS = ("--device", "cpu", "--arithmetic", "native", "--memory-budget", "128GiB", "--tflops", "200")
RUN = """
import atexit, os, pathlib, resource, sys
from quantaudit.cli import main
folder = pathlib.Path(sys.argv.pop(1))
def note():
    use = resource.getrusage(resource.RUSAGE_SELF)
    # ru_maxrss would count what the process that started this one held.
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
    (folder / os.environ.get("RANK", "0")).write_text(f"{peak} {use.ru_utime + use.ru_stime}")
atexit.register(note)
main()
"""
PLAN = """
import time
from quantaudit.cli import main
from quantaudit.pipeline.plan import probe, run
probe.perf_counter = run.seconds_since_start = time.process_time
main()
"""
"""A plan by the clock of its processor."""
DENSE = Shape(layers=8, hidden=1024, intermediate=2816)
WIDE = Shape(layers=4, hidden=1536, intermediate=4096)
EXPERTS = Shape(layers=6, hidden=1024, intermediate=512, experts=12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A model, what its report may use in all, on how many ranks, and options in addition."""

    shape: Shape
    budget: str
    ranks: int = 1
    options: tuple[str, ...] = ("--samples", "8", "--max-length", "96")

    @property
    def arguments(self) -> list[str]:
        """Options that plan and report share."""
        return ["--device", "cpu", "--memory-budget", self.budget, *self.options]


SETTINGS = {
    "dense whole": Setting(shape=DENSE, budget="8GiB"),
    "dense by block": Setting(shape=DENSE, budget="1.3GiB"),
    "wide by block": Setting(shape=WIDE, budget="1.6GiB", options=("--samples", "24", "--max-length", "256")),
    "experts by block": Setting(shape=EXPERTS, budget="1.6GiB"),
    "dense on 2 ranks": Setting(shape=DENSE, budget="8GiB", ranks=2),
}


def planned(model: Path, options: Sequence[str]) -> dict[str, Any]:
    """The plan as data."""
    command = [sys.executable, "-c", PLAN, "plan", str(model), *options, "--format", "json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=_environment())
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan


def large(name: str) -> str:
    """A row of the table of what large models need, without the time."""
    with tempfile.TemporaryDirectory() as folder:
        LARGE[name].save_pretrained(folder)
        plan = planned(Path(folder), LARGE_OPTIONS)
    whole, by_block = plan["ways"]
    weights = plan["weights"]
    cells = [weights["total"], weights["largest_block"], whole["memory"], by_block["least_budget"], by_block["memory"]]
    return " | ".join([name, *map(size_text, cells), size_text(by_block["disk"])])


def report(place: Path, setting: Setting) -> tuple[int, float, float]:
    """Peak resident bytes of a report's process, of several the highest; its seconds; and those of its processor."""
    peaks, script = place / "peaks", place / "run.py"
    peaks.mkdir()
    script.write_text(RUN)
    command = [sys.executable]
    if setting.ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc-per-node", str(setting.ranks)]
    command += [str(script), str(peaks), "report", str(place / "model"), *setting.arguments]
    start = perf_counter()
    subprocess.run([*command, "--out", str(place / "card")], check=True, stdout=subprocess.DEVNULL, env=_environment())
    took, notes = perf_counter() - start, [path.read_text().split() for path in peaks.iterdir()]
    return max(int(peak) for peak, _ in notes), took, max(float(seconds) for _, seconds in notes)


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def main(
    only: Annotated[str, typer.Option(help="names of settings, with commas")] = ",".join(SETTINGS),
    folder: Annotated[Path | None, typer.Option(help="where checkpoints are made")] = None,
    of_large: Annotated[bool, typer.Option("--large", help="what large models need, instead")] = False,
) -> None:
    """Print one row for each setting."""
    if of_large:
        print("| model | weights | largest block | whole | block by block from | within 128 GiB | disk |")
        print("|---|---:|---:|---:|---:|---:|---:|")
        for name in LARGE:
            print(f"| {large(name)} |", flush=True)
        return
    wrong = 0
    print("| setting | weights | memory said | memory taken | seconds said | of one processor | by the clock |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in only.split(","):
        setting, place = (
            SETTINGS[name],
            Path(tempfile.mkdtemp(prefix="quantaudit-plan-", dir=folder)),
        )
        try:
            weights = make(place / "model", setting.shape)
            plan = planned(place / "model", [*setting.arguments, "--ranks", str(setting.ranks)])
            peak, took, busy = report(place, setting)
        finally:
            shutil.rmtree(place)
        way = next(way for way in plan["ways"] if way["name"] == plan["chosen"])
        said = sum(stage["seconds"] for stage in way["stages"])
        memory, time = peak / way["memory"] - 1, busy / said
        wrong += abs(memory) > MEMORY or not 1 / TIME <= time <= TIME
        row = f"{name} | {size_text(weights)} | {size_text(way['memory'])} | {size_text(peak)} ({memory:+.0%})"
        print(f"| {row} | {said:.0f} | {busy:.0f} ({time:.2f} ×) | {took:.0f} |", flush=True)
    raise typer.Exit(int(wrong > 0))


if __name__ == "__main__":
    typer.run(main)
