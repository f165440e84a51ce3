"""What a job knows about its end: counted in one place, under a clock that the test turns."""

from __future__ import annotations

import pytest

from quantaudit.common.progress import Job, Running, Snapshot, Stage, correction, stage_left


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Seen:
    def __init__(self) -> None:
        self.begun: list[Snapshot] = []
        self.ended: list[Snapshot] = []

    def begin(self, now: Snapshot) -> None:
        self.begun.append(now)

    def end(self, now: Snapshot) -> None:
        self.ended.append(now)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def job(clock: Clock) -> Job:
    return Job(Seen(), clock)


def look(job: Job) -> Snapshot:
    now = job.snapshot()
    assert now is not None
    return now


def test_before_anything_is_announced_only_the_stage_is_known(job: Job, clock: Clock) -> None:
    assert job.snapshot() is None
    job("loading", 0)
    clock.now += 7
    now = look(job)
    assert (now.title, now.stage_seconds, now.share, now.left, now.rate) == ("loading", 7.0, None, None, None)


def test_an_expectation_that_holds_gives_the_time_left_exactly(job: Job, clock: Clock) -> None:
    job.expect([Stage("a", 10.0), Stage("b", 30.0)])
    advance = job("a", 100, "tokens")
    for second in range(1, 11):
        clock.now += 1
        advance(10)
        now = look(job)
        assert now.left == pytest.approx(40 - second)
        assert now.share == pytest.approx(second / 40)
        assert now.rate == pytest.approx(10)
    job("b", 0)
    clock.now += 15
    assert look(job).left == pytest.approx(15)


def test_a_machine_that_slows_down_moves_the_end_of_what_is_to_come(job: Job, clock: Clock) -> None:
    job.expect([Stage("a", 10.0), Stage("b", 30.0)])
    advance = job("a", 10)
    clock.now += 40
    advance(10)
    job("b", 0)
    assert look(job).left == pytest.approx(30 * correction(10, 40)) == pytest.approx(60)


def test_the_share_never_runs_backwards_and_never_says_all(job: Job, clock: Clock) -> None:
    job.expect([Stage("a", 1.0), Stage("b", 1.0)])
    job("a", 0)
    shares = []
    for _ in range(50):
        clock.now += 1
        shares.append(look(job).share or 0.0)
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_stages_that_are_passed_by_are_not_waited_for(job: Job) -> None:
    job.expect([Stage("a", 10.0), Stage("skipped", 1000.0), Stage("b", 5.0)])
    job("a", 0)
    job("b", 0)
    assert look(job).left == pytest.approx(5.0)


def test_an_unexpected_stage_keeps_those_to_come(job: Job, clock: Clock) -> None:
    job.expect([Stage("b", 5.0)])
    advance = job("surprise", 4)
    clock.now += 2
    advance(1)
    assert look(job).left == pytest.approx(6.0 + 5.0)


def test_a_stage_is_begun_and_ended_once_each(job: Job, clock: Clock) -> None:
    first = job("a", 2)
    clock.now += 3
    job("b", 2)
    first(2)  # late: its stage is over
    assert look(job).stage_share == 0.0
    job.close()
    job.close()
    seen = job.display
    assert isinstance(seen, Seen)
    assert [now.title for now in seen.begun] == ["a", "b"]
    assert [(now.title, now.stage_seconds) for now in seen.ended] == [("a", 3.0), ("b", 0.0)]


def test_the_running_stage_trusts_its_own_pace_more_and_more() -> None:
    def left(done: int, seconds: float) -> float:
        running = Running(title="a", total=100, unit="steps", began=0, expected=100.0, done=done, serial=0)
        return stage_left(running, seconds, 1.0)

    assert left(0, 3.0) == 100.0
    assert left(50, 10.0) == pytest.approx(10.0)  # ten times as fast as expected
    assert left(50, 10.0) < left(5, 1.0) < 100.0


def test_beyond_its_expectation_an_uncounted_stage_has_nothing_left() -> None:
    running = Running(title="a", total=0, unit="steps", began=0, expected=10.0, serial=0)
    assert stage_left(running, 4.0, 1.0) == 6.0
    assert stage_left(running, 400.0, 1.0) == 0.0
