"""Compiling while a command imports and loads: on a new machine it takes as long as these do. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_COMPILE = "from quantaudit.stats.kernels.host_kernel import compile_record; compile_record()"
_running: list[subprocess.Popen[bytes]] = []


def compile_ahead() -> None:
    """Begin in a process of its own, where nothing was compiled yet and what is can be kept next to the bytecode."""
    kept = Path(__file__).with_name("__pycache__")
    writable = os.access(kept if kept.is_dir() else kept.parent, os.W_OK)
    if _running or "NUMBA_CACHE_DIR" in os.environ or not writable:
        return
    if any(kept.glob("host_kernel.*.nbc")):
        return
    command, quiet = [sys.executable, "-P", "-c", _COMPILE], subprocess.DEVNULL
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        _running.append(subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, env=environ))
    except OSError:
        return  # then it is compiled when it is needed


def wait_for_compiler() -> None:
    """Until what was begun is done, whatever came of it."""
    while _running:
        _running.pop().wait()
