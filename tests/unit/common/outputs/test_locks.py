"""One process writes at a time; whoever finds a lock taken learns by whom; a killed holder blocks nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quantaudit.common.outputs.locks import Holder, holder_of, locked
from quantaudit.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from quantaudit.common.outputs.locks import locked
sys.argv = ["quantaudit", "report", "demo"]
with locked(Path(sys.stdin.readline().strip()), what=Path("card")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def held(tmp_path: Path) -> Path:
    return tmp_path / "card" / ".lock"


def holding(lock: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{lock}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_at_once_with_the_name_of_the_first(held: Path) -> None:
    process = holding(held)
    try:
        start = time.monotonic()
        with pytest.raises(OutputError) as caught, locked(held, what=Path("card")):
            pass
        assert time.monotonic() - start < 2
        said = str(caught.value)
        assert caught.value.where == "card"
        assert f"process {process.pid} on " in said
        assert "`quantaudit report demo`" in said
        assert ", since 20" in said
    finally:
        process.kill()
        process.wait()


def test_a_killed_holder_blocks_nobody_and_its_file_goes(held: Path) -> None:
    process = holding(held)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert held.exists()
    with locked(held, what=held):
        assert holder_of(held) is not None
        assert holder_of(held).pid == os.getpid()  # type: ignore[union-attr]
    assert not held.exists()


def test_a_waiting_process_gets_it_when_the_first_ends(held: Path) -> None:
    process = holding(held)
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({process.pid}, 9)"])
    with locked(held, what=held, wait=30):
        assert process.wait(10) == -signal.SIGKILL
    killer.wait()


def test_folders_made_for_a_lock_go_with_it_unless_they_are_used(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b" / "lock", what=tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b" / "lock", what=tmp_path):
        (tmp_path / "a" / "kept").write_text("")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_processes_add_up_under_a_lock(tmp_path: Path) -> None:
    """Four processes that read, wait and write: with a lock that is removed on each release, no sum is lost."""
    code = """
import sys, time
from pathlib import Path
from quantaudit.common.outputs.locks import locked
folder = Path(sys.argv[1])
for _ in range(25):
    with locked(folder / "lock", what=folder, wait=60):
        count = int((folder / "count").read_text())
        time.sleep(0.001)
        (folder / "count").write_text(str(count + 1))
"""
    (tmp_path / "count").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "100"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_a_name_from_elsewhere_is_inert(held: Path) -> None:
    name = str(Holder(command="\x1b[2Jrm" + "x" * 1000, pid=1, host="h\n", since="now"))
    assert name.isprintable()
    assert len(name) < 300


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '"x"'])
def test_an_unreadable_name_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    assert holder_of(tmp_path / "lock") is None


def test_where_no_lock_can_be_made_the_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError) as caught, locked(tmp_path / "file" / "lock", what=tmp_path / "file"):
        pass
    assert caught.value.where == str(tmp_path / "file")
