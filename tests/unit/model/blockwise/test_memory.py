"""Amounts of memory are read as people write them, and limits of every kind are seen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.errors import UsageError
from quantaudit.model.blockwise import memory
from quantaudit.model.blockwise.memory import (
    available_bytes,
    parse_size,
    resident_bytes,
    size_option,
    size_text,
    sizes_apart,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3GiB", 3 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        ("500MB", 500_000_000),
        ("2tb", 2 * 10**12),
        ("64kib", 2**16),
        ("12345", 12345),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--memory-budget") == size


@pytest.mark.parametrize("text", ["", "GiB", "3 GBit", "-1GiB", "0", "1e9", "three", "3GiB 2", f"{'9' * 5000}GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not an amount of memory"):
        parse_size(text, "--memory-budget")


def test_sizes_are_written_in_the_unit_that_suits_them() -> None:
    sizes = {
        60_053 * 2**30: "60,053.0 GiB",
        3 * 2**30: "3.0 GiB",
        2**29: "512 MiB",
        10 * 2**20: "10 MiB",
        3 * 2**20: "3,072 KiB",
        600_000: "586 KiB",
        1536: "1.5 KiB",
        600: "600 bytes",
        0: "0 bytes",
    }
    assert {size: size_text(size) for size in sizes} == sizes


@given(st.integers(1, 2**60))
def test_a_size_that_is_proposed_is_one_word_that_is_enough(size: int) -> None:
    proposed = size_option(size)
    assert proposed.isalnum() or proposed.replace(".", "").isalnum()
    assert size <= parse_size(proposed, "--memory-budget") <= max(1.1 * size, size + 103)


def test_no_more_is_available_than_the_machine_has() -> None:
    assert 0 < available_bytes() <= psutil.virtual_memory().total
    assert 2**20 < resident_bytes() < psutil.virtual_memory().total


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count(limit: str) -> None:
    code = (
        f"import resource\nresource.setrlimit(resource.{limit}, (2**29, resource.RLIM_INFINITY))\n"
        "from quantaudit.model.blockwise.memory import available_bytes\nprint(available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 2**29


@pytest.mark.parametrize(
    ("line", "root", "limit", "usage", "cached"),
    [
        ("0::/a/b", "cgroup", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/a/b", "cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["v2", "v1"],
)
def test_limits_of_every_control_group_around_it_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, root: str, limit: str, usage: str, cached: str
) -> None:
    inner = tmp_path / root / "a/b"
    inner.mkdir(parents=True)
    (inner / limit).write_text("max\n" if limit == "memory.max" else f"{2**63}\n")
    (inner / usage).write_text("10\n")
    (inner.parent / limit).write_text("1000\n")
    (inner.parent / usage).write_text("700\n")
    (inner.parent / "memory.stat").write_text(f"cache 5\n{cached} 50\n")
    (tmp_path / "self").write_text(f"7:cpu:/x\n{line}\n")

    def under(path: str) -> Path:
        return Path(path.replace("/proc/self/cgroup", f"{tmp_path}/self").replace("/sys/fs", str(tmp_path)))

    monkeypatch.setattr(memory, "Path", under)
    assert available_bytes() == 1000 - 700 + 50


def test_two_amounts_that_would_read_the_same_are_told_apart() -> None:
    assert sizes_apart(1_112_359_936, 1040 << 20) == ("1,061 MiB", "1,040 MiB")
    assert sizes_apart(3 << 30, 1 << 30) == ("3.0 GiB", "1.0 GiB")
