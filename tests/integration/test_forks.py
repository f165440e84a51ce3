"""A small model's samples are shared by forks of the process: the same bytes, and no fork outlives what it is for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from quantaudit.advise.goal import Goal, Offers
from quantaudit.card.render import write_card
from quantaudit.common.outputs import resume
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import RunState
from quantaudit.common.progress import Advance, Stages, silent_stages
from quantaudit.common.ranks.forked import can_fork, forks_allowed, one_thread, run_forked
from quantaudit.common.ranks.team import alone, deal, gather, team
from quantaudit.common.resources import resource_dir
from quantaudit.errors import MeasurementError, RankError
from quantaudit.measure.profile import profile_bytes
from quantaudit.pipeline import passes
from quantaudit.pipeline.advise import advise_case
from quantaudit.pipeline.audit import audit
from quantaudit.pipeline.case import read_case
from quantaudit.pipeline.passes import fork_count
from quantaudit.pipeline.prepare import AuditInputs, prepare
from quantaudit.settings import CaseSpec, Settings

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has forks that are safe here")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    """As on a machine with three processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def settings(base: Path, model: str = "dense") -> Settings:
    return Settings.of(
        str(base / model), corpus=str(base / "texts.jsonl"), evaluation_tokens=64, device="cpu", single_groups="1"
    )


def shared(_stages: Stages) -> list[tuple[int, int, int]]:
    """Of each rank, which it is, its part of ten items, and how many threads it has."""
    return gather((team().rank, sum(deal(range(10), lambda item: item + 1)), torch.get_num_threads()))


def test_ranks_deal_and_gather() -> None:
    rows = run_forked(shared, 3)
    assert [rank for rank, _, _ in rows] == [0, 1, 2]
    assert sum(part for _, part, _ in rows) == sum(range(10))
    assert {threads for _, _, threads in rows} == {1}
    assert torch.get_num_threads() == 3
    assert team().size == 1


def of_fork(act: Callable[[], object]) -> Callable[[Stages], object]:
    """Work in which the second rank does something of its own before all meet."""

    def work(_stages: Stages) -> object:
        if team().rank == 1:
            act()
        return gather(team().rank)

    return work


def fail() -> None:
    raise MeasurementError("no forward pass", where="sample s3", hint="look at it")


def test_the_error_of_a_fork_is_raised_here() -> None:
    with pytest.raises(MeasurementError, match="no forward pass") as raised:
        run_forked(of_fork(fail), 3)
    assert (raised.value.where, raised.value.hint) == ("sample s3", "look at it")


class UnsendableError(Exception):
    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def fail_unsendably() -> None:
    raise UnsendableError("this", "that")


def test_an_error_that_cannot_be_sent_says_what_it_said() -> None:
    with pytest.raises(RankError, match="UnsendableError: this and that"):
        run_forked(of_fork(fail_unsendably), 2)


def test_a_fork_that_is_killed_ends_the_run() -> None:
    with pytest.raises(RankError, match="was killed, perhaps for want of memory"):
        run_forked(of_fork(lambda: os.kill(os.getpid(), signal.SIGKILL)), 2)
    assert not psutil.Process().children()


def test_an_error_here_ends_the_forks() -> None:
    def work(_stages: Stages) -> None:
        if team().rank:
            time.sleep(60)
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_forked(work, 3)
    assert time.monotonic() - start < 30
    assert not psutil.Process().children()


def test_a_fork_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    run_forked(of_fork(lambda: print("heard", file=sys.stderr)), 2)
    run_forked(of_fork(lambda: print("heard")), 2)
    assert "heard" not in "".join(capfd.readouterr())


PARENT = """
import os, time
from quantaudit.common.ranks.forked import run_forked
from quantaudit.common.ranks.team import team

def work(_stages):
    if team().rank:
        os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(60)

run_forked(work, 2)
"""


def test_a_fork_ends_with_the_process_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        fork = psutil.Process(int(process.stdout.readline()))
        process.kill()
        process.wait()
        with suppress(psutil.NoSuchProcess):
            fork.wait(10)
        assert not fork.is_running()


def test_who_may_fork() -> None:
    assert not can_fork()  # a library that is imported does not
    with forks_allowed():
        assert can_fork()
        assert run_forked(lambda _stages: gather(can_fork()), 2) == [False, False]
        with alone():
            assert can_fork()
    assert not can_fork()


def test_how_many_processes_share_a_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = prepare(settings(base))
    assert fork_count(inputs) == 1
    with forks_allowed():
        assert fork_count(inputs) == 3
        with one_thread():
            assert fork_count(inputs) == 1
        with monkeypatch.context() as patch:
            patch.setattr(passes, "MOST_FORKS", 2)
            assert fork_count(inputs) == 2
        with monkeypatch.context() as patch:
            patch.setattr(passes, "SMALL", 1000)
            assert fork_count(inputs) == 1
        with monkeypatch.context() as patch:
            patch.setattr(passes, "available_bytes", lambda: passes.FORK_BYTES)
            assert fork_count(inputs) == 1


@pytest.mark.parametrize("model", ["dense", "mixture"])
def test_forks_make_the_bytes_of_one_process(base: Path, model: str) -> None:
    inputs = prepare(settings(base, model))

    def outputs() -> tuple[bytes, str]:
        profile = passes.measure_inputs(inputs)
        return profile_bytes(profile), passes.simulate_inputs(inputs, profile).model_dump_json()

    with one_thread():
        expected = outputs()
    with forks_allowed():
        assert fork_count(inputs) == 3
        assert outputs() == expected


def test_advice_of_forks_is_that_of_one_process(base: Path, tmp_path: Path) -> None:
    measured = audit(settings(base))
    write_card(measured.card, tmp_path, others={"profile.safetensors": profile_bytes(measured.profile)})
    case = read_case(
        CaseSpec(
            recipe=resource_dir("recipes") / "w8a8_static.yaml",
            card=tmp_path / "card.json",
            model=str(base / "dense"),
            corpus=str(base / "texts.jsonl"),
            evaluation_tokens=64,
            device="cpu",
        )
    )

    def advised() -> tuple[str, str, str]:
        found = advise_case(case, Goal(max_kl=1e-9), Offers(smoothing=True, unquantized=True))
        return found.text, found.advice.info.model_dump_json(), found.advice.row.model_dump_json()

    with one_thread():
        expected = advised()
    with forks_allowed():
        assert advised() == expected


class Killed(BaseException):
    """What stands for SIGKILL."""


def test_a_run_that_is_shared_is_resumed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parent and its forks had finished is not run again."""
    monkeypatch.setattr(resume, "SHARE", float("inf"))
    forwards: list[int] = []

    def run(state: RunState, stages: Stages = silent_stages) -> str:
        with forks_allowed():
            return audit(settings(base), state=state, stages=stages).simulation.model_dump_json()

    def state(out: str, *, go_on: bool) -> RunState:
        return RunState(Output(option="--out", path=tmp_path / out, folder=True), resume=go_on, say=lambda _line: None)

    def cut(title: str, total: int, unit: str = "steps") -> Advance:
        if title == "scoring the whole model":
            raise Killed
        return lambda amount=1: None

    whole = state("whole", go_on=False)
    expected = run(whole)
    whole.done()
    with pytest.raises(Killed):
        run(state("out", go_on=False), cut)
    kept = sorted(path.name for path in (tmp_path / "out").rglob("*.sqlite"))
    assert kept == ["units-1.sqlite", "units-2.sqlite", "units.sqlite"]
    measured = passes.measure_samples

    def counted(inputs: AuditInputs, *args: object, **named: object) -> object:
        forwards.append(1)
        return measured(inputs, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(passes, "measure_samples", counted)
    assert run(state("out", go_on=True)) == expected
    assert not forwards
