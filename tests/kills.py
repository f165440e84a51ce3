"""Kills commands at random moments, and looks at what is left, and at what the next run makes of it.

    python -m tests.kills [COUNT] [SEED]

Each command is run onto an output that exists, in a process of its own that gets SIGKILL. Afterwards a reader must find
the old files or the new ones; the next run, with --resume where there is one, must end in what an uninterrupted run
ends in, and leave nothing of ours behind. Equal means: byte for byte, but for when a card was created, how long stages
took, and the digest over them.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a fork has none of the threads of a process that has some
CARD = ("--card", "card/card.json")
TEXT = ("--corpus", "texts.jsonl", "--evaluation-tokens", "64")
FEW = ("--schemes", "int8")
GOAL = ("--model", "model", "--no-smoothing", "--max-kl", "1e-9")
MEASURE = ("--corpus", "texts.jsonl", "--force", "--seed", "3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line, the places that it changes, and whether it can go on from an interrupted run."""

    line: tuple[str, ...]
    places: tuple[str, ...]
    resumes: bool = False


COMMANDS = {
    "report": Command(
        line=("report", "model", *TEXT, *FEW, "--seed", "3", "--out", "card", "--force"), places=("card",), resumes=True
    ),
    "advise": Command(
        line=("advise", "static.yaml", *CARD, *TEXT, *GOAL, "--out", "new.yaml", "--force"),
        places=("card", "new.yaml"),
        resumes=True,
    ),
    "verify": Command(
        line=("verify", "dynamic.yaml", "model", *CARD, *TEXT, "--save", "saved", "--force"), places=("card", "saved")
    ),
    "measure": Command(
        line=("measure", "model", *MEASURE, "--out", "m.safetensors"), places=("m.safetensors",), resumes=True
    ),
    "render": Command(line=("render", "other.json", "--out", "page", "--force"), places=("page",)),
    "insert": Command(
        line=("insert", "other.json", "model/README.md", "--front-matter"),
        places=("model/README.md", "model/quantaudit"),
    ),
}


def main() -> int:
    """Print a line for every fault, and a table at the end. Exit code 1 where there was one."""
    count, seed = (int(value) for value in (*sys.argv[1:], *("100", "0")[len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        faults, seen = kill_all(Path(name), count, random.Random(seed))
    for what, times in sorted(seen.items()):
        print(f"{times:4} {what}")
    print(f"{count} kills, {len(faults)} faults")
    return 1 if faults else 0


def kill_all(scratch: Path, count: int, rng: random.Random) -> tuple[list[str], Counter[str]]:
    """Faults, and how often what was seen, of so many kills, dealt evenly to all commands."""
    base = build(scratch / "base")
    faults: list[str] = []
    seen: Counter[str] = Counter()
    names = [[*COMMANDS][number % len(COMMANDS)] for number in range(count)]
    whole = {name: uninterrupted(base, scratch / f"whole-{name}", COMMANDS[name]) for name in dict.fromkeys(names)}
    for number, name in enumerate(names):
        folder = scratch / f"kill-{number}"
        fault = kill_one(base, folder, COMMANDS[name], *whole[name], rng, seen)
        if fault:
            faults.append(f"kill {number}, {name}: {fault}")
            print(faults[-1], flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    return faults, seen


def uninterrupted(base: Path, folder: Path, command: Command) -> tuple[dict[str, Any], float]:
    """What a whole run leaves, and how long it takes."""
    shutil.copytree(base, folder)
    start = time.monotonic()
    code, said = run(folder, command.line)
    assert code in (0, 1, 3), said  # the model is random: advice on it is inconclusive
    return state(folder, command), time.monotonic() - start


def kill_one(
    base: Path,
    folder: Path,
    command: Command,
    whole: dict[str, Any],
    seconds: float,
    rng: random.Random,
    seen: Counter[str],
) -> str | None:
    """What is wrong after one kill, if anything is."""
    verb = command.line[0]
    shutil.copytree(base, folder)
    before = state(folder, command)
    # Half of the moments are towards the end, where files are written.
    share = rng.uniform(0.75, 1.05) if rng.random() < 0.5 else rng.uniform(0.02, 1.0)
    code, _ = run(folder, command.line, kill_after=share * seconds)
    seen[f"{verb}: {'killed' if code == -signal.SIGKILL else 'too late'}"] += 1
    settle(folder)
    after = state(folder, command)
    mixed = [place for place in command.places if after[place] not in (before[place], whole[place])]
    if mixed:
        return f"neither old nor new: {', '.join(mixed)}"
    if verb != "verify" and after not in (before, whole):  # a checkpoint is whole before it is scored
        return "some places are old, and some new"
    seen[f"{verb}: {'new' if after == whole else 'old'} after the kill"] += 1
    code, said = run(folder, (*command.line, *(["--resume"] if command.resumes else [])))
    if code not in (0, 1, 3):
        return f"the next run ends in {code}: {said[-300:]}"
    if match := re.search(r"going on after ([\d,]+) finished units", said):
        seen[f"{verb}: resumed"] += 1
        seen[f"{verb}: units taken over"] += int(match[1].replace(",", ""))
    if state(folder, command) != whole:
        return f"the next run ends in something else: {different(state(folder, command), whole)}"
    left = [path.name for path in folder.rglob("*") if "quantaudit-" in path.name or path.name.endswith(".part")]
    return f"left behind: {', '.join(left)}" if left else None


def run(folder: Path, line: tuple[str, ...], kill_after: float | None = None) -> tuple[int, str]:
    """(exit code, what was said) of a command in a process of its own, forked so that it need not import all again."""
    log = folder.with_suffix(".log")
    log.write_text("", encoding="utf-8")
    pid = os.fork()
    if pid == 0:
        child(folder, line, log)
    deadline = None if kill_after is None else time.monotonic() + kill_after
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)


def child(folder: Path, line: tuple[str, ...], log: Path) -> None:
    """Be the command, and never return."""
    code = 70
    try:
        from quantaudit import cli

        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = ["quantaudit", *line]
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def settle(folder: Path) -> None:
    """What any reader of ours does first."""
    from quantaudit.common.outputs.file_set import finish

    for path in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        finish(path)


def state(folder: Path, command: Command) -> dict[str, Any]:
    """By place, all that is there, in a form in which equal results are equal."""
    return {place: content(folder / place) for place in command.places}


def content(place: Path) -> Any:
    """A file's digest, or those of a folder's files; hidden ones of ours apart."""
    if not place.is_dir():
        return digest(place.read_bytes()) if place.exists() else None
    files = {path.relative_to(place).as_posix(): path for path in place.rglob("*") if path.is_file()}
    found = {name: digest(path.read_bytes()) for name, path in files.items() if not name.startswith(".quantaudit-")}
    if "card.json" in found:
        found |= card_content(place)
    return found


def card_content(folder: Path) -> dict[str, str]:
    """Of a card and its pages, all but what differs between equal runs."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    timings = ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in card["environment"]["timings"].items())
    own = [text for text in (card.pop("created"), card.pop("seal", None), timings) if text]
    card["environment"]["timings"] = {}
    found = {"card.json": digest(json.dumps(card, sort_keys=True).encode())}
    for name in filter(lambda name: (folder / name).exists(), ("card.html", "card.md")):
        text = (folder / name).read_text(encoding="utf-8")
        assert own[0] in text, f"{name} is of another card"
        for part in own:
            text = text.replace(part, "")
        found[name] = digest(text.encode())
    return found


def different(one: Any, other: Any) -> list[str]:
    """Names under which two states differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
        return [f"{name}: {different(one.get(name), other.get(name))}" for name in names]
    return [str(one)[:12], str(other)[:12]]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build(folder: Path) -> Path:
    """A small model, its text, recipes, and everything that the commands will replace."""
    import quantaudit.pipeline.advise
    import quantaudit.pipeline.audit
    import quantaudit.pipeline.verify  # noqa: F401 (so that forked commands find everything imported)
    from quantaudit.common.resources import resource_dir
    from tests.builders import save_checkpoint, tiny_model

    save_checkpoint(folder / "model", tiny_model("mistral"))
    rows = [{"id": f"s{i}", "domain": "ab"[i % 2], "text": f"Sample {i}: {'words, ' * (i + 4)}end."} for i in range(12)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "model" / "README.md").write_text("---\nlicense: mit  # ours\n---\n# A model\n", encoding="utf-8")
    for name in ("static", "dynamic"):
        shutil.copy(resource_dir("recipes") / f"w8a8_{name}.yaml", folder / f"{name}.yaml")
    for line in (
        ("report", "model", *TEXT, *FEW, "--out", "card"),
        ("report", "model", *TEXT, *FEW, "--seed", "5", "--out", "other"),
        ("render", "card/card.json", "--out", "page"),
        ("insert", "card/card.json", "model/README.md"),
        ("measure", "model", "--corpus", "texts.jsonl", "--out", "m.safetensors"),
        ("verify", "dynamic.yaml", "model", *CARD, *TEXT, "--save", "saved"),
        ("advise", "dynamic.yaml", *CARD, *TEXT, *GOAL[:-1], "9", "--out", "new.yaml"),
    ):
        code, said = run(folder, line)
        assert code in (0, 1, 3), said  # the model is random: advice on it is inconclusive
    shutil.move(folder / "other" / "card.json", folder / "other.json")
    shutil.rmtree(folder / "other")
    return folder


if __name__ == "__main__":
    sys.exit(main())
