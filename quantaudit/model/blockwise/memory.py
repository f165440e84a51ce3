"""How much memory there is for this process, and how much it uses. Imports no torch."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import psutil

from quantaudit.common.ranks.team import team
from quantaudit.errors import UsageError

_UNITS = {"": 1, "B": 1} | {
    f"{letter}{ending}": base**power
    for ending, base in (("B", 1000), ("iB", 1024))
    for power, letter in enumerate("KMGT", 1)
}
_WRITTEN = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z]*)")
SPARED = 0.1
"""Share of the available memory that is left to others, where no budget is given."""
_UNLIMITED = 1 << 60


def parse_size(text: str, option: str) -> int:
    """Bytes, from `3GiB`, `500MB` or a plain number. Raises UsageError."""
    match = _SIZE.fullmatch(text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units or not float(match[1]):
        raise UsageError(
            "not an amount of memory", where=f"{option} {text}", hint="a number with a unit, such as 24GiB"
        )
    return int(float(match[1]) * units[match[2].lower()])


def size_text(size: float) -> str:
    """Bytes in the unit that suits them, of three digits where there are as many: 600 bytes, 586 KiB, 2.9 GiB."""
    if size < 2**10:
        return f"{size:.0f} bytes"
    if size < 10 * 2**20:
        return f"{size / 2**10:,.{1 if size < 10 * 2**10 else 0}f} KiB"
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def sizes_apart(one: int, other: int) -> tuple[str, str]:
    """Two amounts in words; in whole MiB where they would read the same."""
    texts = size_text(one), size_text(other)
    return texts if texts[0] != texts[1] else (f"{-(-one // 2**20):,} MiB", f"{other // 2**20:,} MiB")


def size_option(size: int) -> str:
    """An amount of memory as an option takes it, at least this much, in one word: 586KiB, 2.9GiB."""
    unit, name = next(((unit, name) for unit, name in _WRITTEN if size >= unit), (1, "B"))
    tenths = -(-10 * size // unit)
    return f"{tenths // 10}{f'.{tenths % 10}' if tenths % 10 else ''}{name}"


def resident_bytes() -> int:
    """Memory of this process that is resident."""
    return int(psutil.Process().memory_info().rss)


def memory_budget(given: int | None) -> int:
    """Bytes that this process may use in all. given: to the run, on each machine; by default most of what is available.

    Ranks of one machine have equal parts of it, and none takes any before all have looked.
    """
    parts = team().local_size
    if given is not None:
        return given // parts
    return resident_bytes() + team().combined(int((1 - SPARED) * available_bytes()) // parts, min)


def give_back() -> None:
    """Return memory that was freed to the system: glibc keeps blocks of up to 32 MiB, such as experts, for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def available_bytes() -> int:
    """Memory that this process can still take: of the machine, of its control group, and within its own limits."""
    return max(0, min(int(psutil.virtual_memory().available), _left_in_group(), _left_to_process()))


def _left_in_group() -> int:
    """What the control groups of this process have left; their page cache counts as free."""
    left = _UNLIMITED
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif controllers == "memory":
            root, limit, usage = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        while True:
            most, used = _number(folder / limit), _number(folder / usage)
            if most is not None and used is not None:
                left = min(left, most - used + _cached(folder))
            if folder == root:
                break
            folder = folder.parent
    return left


def _cached(folder: Path) -> int:
    """Bytes of files that a group keeps in memory and gives back when it needs them."""
    rows = dict(line.split() for line in _lines(folder / "memory.stat"))
    return int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))


def _left_to_process() -> int:
    """What `ulimit -v` and `ulimit -d` leave."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return _UNLIMITED
    info = psutil.Process().memory_info()
    limits = ((resource.RLIMIT_AS, info.vms), (resource.RLIMIT_DATA, getattr(info, "data", info.rss)))
    soft = ((resource.getrlimit(kind)[0], used) for kind, used in limits)
    return min([most - used for most, used in soft if most != resource.RLIM_INFINITY], default=_UNLIMITED)


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
