"""What a run has finished is there for the next one of the same identity, and for no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from quantaudit.common.outputs import resume
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import Pace, RunState, units_of
from quantaudit.errors import OutputError

SAME = {"settings": {"seed": 1}, "model": "abc"}


class Run:
    """A run into a folder or a file, and what it said."""

    def __init__(self, path: Path, *, resume: bool, folder: bool = True) -> None:
        self.said: list[str] = []
        self.state = RunState(Output(option="--out", path=path, folder=folder), resume=resume, say=self.said.append)


def interrupted(path: Path, *, folder: bool = True, **identity: Any) -> None:
    with Run(path, resume=False, folder=folder).state.running(identity or SAME):
        units_of("stage").put("a", b"1")
        units_of("stage").put("a", b"2")
        units_of("other").put_json("a", [float("inf"), 0.1, None])


@pytest.mark.parametrize("folder", [True, False])
def test_units_are_found_by_stage_by_order_and_by_name(tmp_path: Path, folder: bool) -> None:
    interrupted(tmp_path / "out", folder=folder)
    run = Run(tmp_path / "out", resume=True, folder=folder)
    with run.state.running(SAME):
        first, second, other = units_of("stage"), units_of("stage"), units_of("other")
        assert (first.get("a"), second.get("a"), first.get("b")) == (b"1", b"2", None)
        assert other.get_json("a") == [float("inf"), 0.1, None]
        assert first.kept
    assert run.said == ["going on after 3 finished units of the interrupted run, which take no time again"]
    run.state.done()
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if folder else [])


def test_a_run_that_does_not_resume_says_that_there_is_one_and_forgets_it(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = Run(tmp_path, resume=False)
    assert "--resume goes on from there" in run.said[0]
    assert Run(tmp_path, resume=True).said == []  # nothing is lost before work starts
    with run.state.running(SAME):
        assert units_of("stage").get("a") is None


def test_a_run_of_another_identity_starts_at_the_beginning_and_says_why(tmp_path: Path) -> None:
    interrupted(tmp_path)
    run = Run(tmp_path, resume=True)
    with run.state.running({**SAME, "settings": {"seed": 2}, "policy": "new"}):
        assert units_of("stage").get("a") is None
        units_of("stage").put("b", b"")
    assert run.said == ["the interrupted run was of other settings, policy: this one starts at the beginning"]


def test_without_an_interrupted_run_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert Run(tmp_path, resume=True).said == ["no interrupted run to resume: this one starts at the beginning"]
    assert Run(tmp_path, resume=False).said == []


def test_a_run_that_finished_nothing_leaves_nothing(tmp_path: Path) -> None:
    with Run(tmp_path, resume=False).state.running(SAME):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_says_that_it_can_be_resumed(tmp_path: Path) -> None:
    run = Run(tmp_path, resume=False)

    def fail() -> None:
        with run.state.running(SAME):
            units_of("stage").put("a", b"1")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert run.said == ["what was finished is kept: --resume goes on from there"]
    with Run(tmp_path, resume=True).state.running(SAME):
        assert units_of("stage").get("a") == b"1"


def test_outside_of_a_run_nothing_is_kept(tmp_path: Path) -> None:
    units = units_of("stage")
    units.put("a", b"1")
    units.put_json("b", 1)
    assert (units.get("a"), units.get_json("b"), units.kept) == (None, None, False)


def test_a_broken_file_is_replaced(tmp_path: Path) -> None:
    interrupted(tmp_path)
    (tmp_path / ".quantaudit-resume" / "units.sqlite").write_bytes(b"no database at all" * 100)
    run = Run(tmp_path, resume=True)
    with run.state.running(SAME):
        assert units_of("stage").get("a") is None
    assert "cannot be read" in run.said[0]


def test_units_are_there_after_sigkill(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import RunState, units_of
state = RunState(Output(option="--out", path=Path(sys.argv[1]), folder=True), resume=False, say=print)
with state.running({"a": 1}):
    units = units_of("stage")
    for number in range(200):
        units.put(str(number), bytes(1000))
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    with Run(tmp_path, resume=True).state.running({"a": 1}):
        units = units_of("stage")
        assert all(units.get(str(number)) == bytes(1000) for number in range(200))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_where_nothing_can_be_kept_the_place_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be kept"), Run(tmp_path, resume=False).state.running(SAME):
        pass


def test_a_full_disk_is_an_error_of_the_output(tmp_path: Path) -> None:
    program = f"""
import resource, sys
from pathlib import Path
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import RunState, units_of
from quantaudit.errors import OutputError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
state = RunState(Output(option="--out", path=Path({str(tmp_path)!r}), folder=True), resume=False, say=print)
try:
    with state.running({{"a": 1}}):
        units_of("stage").put("a", bytes(100_000))
except OutputError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False).stdout
    assert "cannot be kept" in said
    assert str(tmp_path) in said


def test_keeping_takes_its_share_of_the_time_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(resume, "perf_counter", lambda: now)
    pace, spent = Pace(), 0.0
    for _ in range(10_000):
        now += 0.01  # a batch
        if pace.due:
            with pace.keeping():
                now += 0.1
                spent += 0.1
    assert 0 < spent / now <= resume.SHARE + 0.1 / now
