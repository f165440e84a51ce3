"""How many threads torch may start on this machine, and how threads that wait for others do so. Imports no torch.

Both are read from the environment when torch is first imported, so they are decided before, in one place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath

COUNT = "OMP_NUM_THREADS"
SPIN = "GOMP_SPINCOUNT"
SPINS = 10_000
"""How often a waiting thread looks again before it gives its processor away: tenths of a millisecond, longer than what
lies between most operations. libgomp's own 300,000 are milliseconds, at every barrier, in which a busy machine could
have run the thread that is waited for; at 1,000, or with a passive policy, threads that fall asleep between operations
cost an idle machine more than half its speed (`benchmarks/busy.py`)."""
WAITING = (SPIN, "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_CPU_AFFINITY", "OMP_PROC_BIND")
"""Whoever sets one of these has decided how threads wait, or where they run."""


def set_up_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Bound the threads of torch and numba by what is granted here, and let those that wait yield.

    What the user has set stays. It has no effect on a torch that is imported already.
    """
    granted = granted_cpus()
    # Where there is no quota, torch's own choice fits: the affinity mask, without hyper-threads.
    if granted < affinity_cpus():
        environ.setdefault(COUNT, str(granted))
        environ.setdefault("NUMBA_NUM_THREADS", environ[COUNT])
    if not any(name in environ for name in WAITING):
        environ[SPIN] = str(SPINS)


def granted_cpus() -> int:
    """Threads that can run at once: the least of affinity mask and quota, rounded down; at least 1."""
    quota = quota_cpus()
    return max(1, min(affinity_cpus(), math.floor(quota) if math.isfinite(quota) else affinity_cpus()))


def affinity_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cpus(proc: Path = Path("/proc/self")) -> float:
    """CPUs' worth of time that the process's control groups grant, the least of all nested ones; inf without a quota.

    proc: holds `cgroup` and `mountinfo`, as /proc/self does. Reads version 1 and version 2 (docs.kernel.org,
    admin-guide/cgroup-v2 and scheduler/sched-bwc); what cannot be read grants everything.
    """
    return min((_quota(folder) for folder in _groups(proc)), default=math.inf)


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the control groups that bound the CPU time of a process: its own, and those around it."""
    paths = _paths(_text(proc / "cgroup"))
    for line in _text(proc / "mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        version = 2 if kind[0] == "cgroup2" else 1 if kind[0] == "cgroup" and "cpu" in kind[2].split(",") else 0
        if version not in paths:
            continue
        root, top = PurePosixPath(fields[3]), Path(_unescaped(fields[4]))
        path = PurePosixPath(paths[version])
        # In a container the path may be the host's, of which the mount shows a part, or none.
        inside = path.relative_to(root) if path.is_relative_to(root) else PurePosixPath()
        group = top / inside
        yield group
        yield from (parent for parent in group.parents if parent.is_relative_to(top))


def _paths(text: str) -> dict[int, str]:
    """Version → path of the group that bounds CPU time, from the lines `id:controllers:path` of a `cgroup` file."""
    paths: dict[int, str] = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[2] = path
        elif "cpu" in controllers.split(","):
            paths[1] = path
    return paths


def _quota(folder: Path) -> float:
    """One group's quota in CPUs; inf where it sets none."""
    given = _text(folder / "cpu.max").split() or [
        _text(folder / "cpu.cfs_quota_us").strip(),
        _text(folder / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (int(number) for number in given)
    except ValueError:  # `max`, or nothing to read
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _unescaped(path: str) -> str:
    """A path of `mountinfo`, in which blanks are written in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path
