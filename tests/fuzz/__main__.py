"""Runs mutated inputs and lists what is wrong with how they end.

    python -m tests.fuzz --inputs 20000 --jobs 2 --out fuzz          a run; findings go to fuzz/findings.jsonl
    python -m tests.fuzz --again TARGET:SEED --out fuzz              one input again, its folder kept in fuzz/again

Exit 0: every command ended by itself, in time and memory, with a code of its own and without a traceback; 1: not so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from tests.fuzz import material, runs
from tests.fuzz.targets import TARGETS, Target


def main() -> int:
    # Read when huggingface_hub is imported: a name that is no folder here is a request for the Hub, and a fair one.
    os.environ["HF_HUB_OFFLINE"] = "1"
    asked = arguments()
    targets = [target for target in TARGETS if not asked.only or target.name in asked.only]
    asked.out = asked.out.resolve()
    stored = asked.out / "material"
    if not (asked.out / "complete").exists():
        shutil.rmtree(stored, ignore_errors=True)
        material.build(stored)
        (asked.out / "complete").touch()
    if asked.again:
        return again(asked.again, stored, asked.out)
    start = time.time()
    jobs = []
    for job in range(asked.jobs):
        child = os.fork()
        if child == 0:
            os._exit(work(job, asked, targets, stored))
        jobs.append(child)
    for child in jobs:
        os.waitpid(child, 0)
    outcomes = [
        json.loads(line)
        for job in range(asked.jobs)
        for line in (asked.out / f"outcomes-{job}.jsonl").read_text().splitlines()
    ]
    return report(outcomes, asked.inputs, asked.out, time.time() - start)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="first seed")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", metavar="TARGET", choices=[target.name for target in TARGETS])
    parser.add_argument("--again", metavar="TARGET:SEED")
    parser.add_argument("--out", type=Path, default=Path("fuzz"))
    return parser.parse_args()


def work(job: int, asked: argparse.Namespace, targets: list[Target], stored: Path) -> int:
    """Every `jobs`-th input, in a fork of its own."""
    scratch = asked.out / f"job-{job}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    runs.warm_up(stored, scratch, targets)
    random = Random(asked.seed)
    chosen = random.choices(targets, [target.weight for target in targets], k=asked.inputs)
    with (asked.out / f"outcomes-{job}.jsonl").open("w") as file:
        for number in range(job, asked.inputs, asked.jobs):
            outcome = runs.run(chosen[number], asked.seed + number, stored, scratch / "case")
            print(outcome.to_json(), file=file, flush=True)
            if outcome.kind:
                print(f"{outcome.kind} {outcome.target}:{outcome.seed} {last(outcome.text)}", flush=True)
    shutil.rmtree(scratch, ignore_errors=True)
    return 0


def again(name: str, stored: Path, out: Path) -> int:
    """One input again, with all that it prints."""
    wanted, _, seed = name.partition(":")
    target = next(target for target in TARGETS if target.name == wanted)
    outcome = runs.run(target, int(seed), stored, out / "again")
    print(" ".join(target.argv), outcome.kind, outcome.code, f"{outcome.seconds:.1f} s", outcome.text, sep="\n")
    return 1 if outcome.kind else 0


def last(text: str) -> str:
    """The line that says what is wrong."""
    lines = [line for line in text.splitlines() if line.startswith(("error:", "Traceback", "network"))] or [""]
    return ascii(lines[-1][:160])


def report(outcomes: list[dict[str, object]], inputs: int, out: Path, seconds: float) -> int:
    """Prints ends by target, and findings by kind with the seeds that give them."""
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    groups: dict[str, list[str]] = defaultdict(list)
    with (out / "findings.jsonl").open("w") as file:
        for row in outcomes:
            codes[str(row["target"])][str(row["code"])] += 1
            if row["kind"]:
                print(json.dumps(row), file=file)
                line = re.sub(r"\d+|'.*?'", "…", last(str(row["text"])))
                groups[f"{row['kind']}: {line[:100]}"].append(f"{row['target']}:{row['seed']}")
    for target, counts in sorted(codes.items()):
        print(f"{target:20} " + " ".join(f"{code}×{count}" for code, count in sorted(counts.items())))
    for group, seeds in sorted(groups.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):5} {group}  {' '.join(seeds[:4])}")
    slowest = max((float(str(row["seconds"])) for row in outcomes), default=0.0)
    found = sum(map(len, groups.values()))
    took = f"slowest {slowest:.1f} s, {seconds:.0f} s"
    print(f"{len(outcomes):,} of {inputs:,} inputs, {found} findings of {len(groups)} kinds, {took}")
    return 1 if groups or len(outcomes) < inputs else 0


if __name__ == "__main__":
    sys.exit(main())
