"""Commands run by forks of a process that has imported everything once, each under limits of time and memory."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from quantaudit.common.printing.streams import set_up_streams
from tests.fuzz.mutations import mutated, replace_file
from tests.fuzz.targets import Target

MEMORY = 2 << 30
"""Bytes that one command may ask for in addition to what the imports hold."""
CODES = {0, 1, 2, 3, 130}
SPECIAL = 0.02
"""Share of inputs in which the file is replaced by a pipe, a folder, a device …"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command did. code: None where it was stopped; kind: what is wrong with that, or None."""

    target: str
    seed: int
    code: int | None
    seconds: float
    kind: str | None
    text: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def warm_up(material: Path, scratch: Path, targets: list[Target]) -> None:
    """Import in this process whatever honest runs of the targets import in theirs."""
    # Before libraries are imported, as a command does it: their logs keep the stream that they find.
    set_up_streams()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    kinds = {target.argv[:2]: target for target in reversed(targets)}
    for target in kinds.values():
        names = scratch / "modules"
        _run(target, 0, material, scratch / "case", change=False, modules=names)
        for name in names.read_text().split() if names.exists() else ():
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)


def run(target: Target, seed: int, material: Path, folder: Path) -> Outcome:
    """One mutated input."""
    return _run(target, seed, material, folder, change=True)


def prepare(target: Target, seed: int, material: Path, folder: Path) -> list[str]:
    """Fill a folder with the material as links, one file of it changed; the command."""
    random = Random(f"{target.name}:{seed}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for source in material.iterdir():
        if source.is_dir():
            (folder / source.name).mkdir()
            for inner in source.iterdir():
                (folder / source.name / inner.name).symlink_to(inner)
        else:
            (folder / source.name).symlink_to(source)
    if target.file is not None:
        path = folder / target.file
        if random.random() < SPECIAL:
            replace_file(path, random)
        else:
            path.unlink()
            path.write_bytes(mutated((material / target.file).read_bytes(), target.kind, random))
    return target.command(random)


def _run(
    target: Target, seed: int, material: Path, folder: Path, *, change: bool, modules: Path | None = None
) -> Outcome:
    argv = prepare(target, seed, material, folder) if change else list(target.argv)
    if not change:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(material, folder)
    log = folder.with_suffix(".log")
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _command(argv, folder, log, seconds=target.seconds if change else None, modules=modules)
    status = _wait(child, target.seconds * 6 if change else 600)
    seconds = time.monotonic() - start
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    return Outcome(target=target.name, seed=seed, code=code, seconds=seconds, kind=fault(code, text), text=text[-600:])


def _command(argv: list[str], folder: Path, log: Path, *, seconds: int | None, modules: Path | None) -> None:
    """In the fork: never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target, source in ((0, null), (1, out), (2, out)):
            os.dup2(source, target)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")  # noqa: SIM115 (for the fork's lifetime)
        _guard_network()
        if seconds is not None:
            _limit(seconds)
        sys.argv = ["quantaudit", *argv]
        from quantaudit.cli import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 71
    except BaseException as error:  # a finding of its own kind
        os.write(2, f"Traceback escapes: {type(error).__name__}: {error}\n".encode("utf-8", "replace"))
    finally:
        if modules is not None:
            modules.write_text("\n".join(name for name in sys.modules if not name.startswith("__")))
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _limit(more: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + more + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 2))
    # Not of addresses: what draws images reserves many of them and touches few.
    held = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _guard_network() -> None:
    def refuse(*arguments: object, **_: object) -> None:
        os.write(2, f"network: {arguments!r}\n".encode())
        raise OSError("no network here")

    socket.getaddrinfo = refuse  # type: ignore[assignment]
    socket.socket.connect = refuse  # type: ignore[method-assign, assignment]


def _wait(child: int, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    pause = 0.005
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def fault(code: int | None, text: str) -> str | None:
    """What is wrong with an end, or None."""
    if code is None or code == -signal.SIGXCPU:
        return "hang"
    if "Traceback" in text:
        return "traceback"
    if "unexpected " in text and "error: unexpected" in text:
        return "unexpected"
    if "network: (" in text:
        return "network"
    if any(character in text for character in "\x1b\x07\u202e"):
        return "escape"
    if code not in CODES:
        return f"exit {code}"
    return "silent" if code == 2 and not text.strip() else None
