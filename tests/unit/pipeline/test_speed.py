"""How fast a machine is at a job is timed after its first pass, whatever that one has to do beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.pipeline.plan import speed
from quantaudit.pipeline.prepare import prepare
from quantaudit.settings import Settings
from tests.builders import random_corpus

CPU = torch.device("cpu")


class Machine:
    """A machine whose first pass takes `once` seconds more than `per_token` for each token, by a clock of its own."""

    def __init__(self, *, once: float, per_token: float) -> None:
        self.now, self.once, self.per_token = 0.0, once, per_token
        self.passes: list[int] = []

    def work(self, samples: list[TokenizedSample]) -> None:
        self.now += (0.0 if self.passes else self.once) + self.per_token * sum(len(sample.ids) for sample in samples)
        self.passes.append(len(samples))


@pytest.mark.parametrize("once", [0.0, 3.0, 20.0, 300.0])
@pytest.mark.parametrize("per_token", [1e-4, 0.02, 0.5])
def test_what_a_first_pass_does_once_is_not_taken_for_its_pace(
    once: float, per_token: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(once=once, per_token=per_token)
    monkeypatch.setattr(speed, "perf_counter", lambda: machine.now)
    samples = list(random_corpus([40, 36, 33, 30]).samples)
    assert speed._per_token(machine.work, samples, CPU) == pytest.approx(per_token)


def test_a_slow_machine_is_kept_waiting_for_one_short_sample_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(once=0.0, per_token=1.0)
    monkeypatch.setattr(speed, "perf_counter", lambda: machine.now)
    speed._per_token(machine.work, list(random_corpus([40, 36, 33, 30]).samples), CPU)
    assert machine.passes == [1, 1]


def test_a_single_sample_is_timed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(once=0.0, per_token=0.5)
    monkeypatch.setattr(speed, "perf_counter", lambda: machine.now)
    assert speed._per_token(machine.work, list(random_corpus([40, 30]).samples[:1]), CPU) == pytest.approx(0.5)
    assert machine.passes == [1]


@pytest.mark.parametrize("reading", [0.0, 0.4, 30.0])
@pytest.mark.parametrize("each", [1e-4, 0.02])
def test_reading_is_told_from_computing_by_runs_of_two_lengths(each: float, reading: float) -> None:
    found = speed.split_time(reading + 40 * each, 40, reading + 160 * each, 160)
    assert found == (pytest.approx(each), pytest.approx(reading, abs=1e-9))


def test_a_longer_run_that_was_faster_counts_as_reading_alone_and_a_single_sample_as_computing() -> None:
    assert speed.split_time(3.0, 40, 2.5, 160) == (0.0, 2.5)
    assert speed.split_time(3.0, 40, 100.0, 160) == (pytest.approx(0.625), 0.0)
    assert speed.split_time(3.0, 40, 3.0, 40) == (pytest.approx(0.075), 0.0)


def test_passes_with_logits_are_timed_where_the_output_projection_runs_on_every_token(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that stands still but while the projection runs on more than the last token."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Row {i}: {i * 7919 % 997} and {i**3}."}) + "\n" for i in range(12)))
    inputs = prepare(Settings.of(model=str(tiny_folder), corpus=str(text), device="cpu", evaluation_tokens=64))
    now = 0.0

    def counted(_module: object, arguments: tuple[torch.Tensor], _output: object) -> None:
        nonlocal now
        rows = arguments[0][..., 0].numel()
        now += rows if rows > 1 else 0

    inputs.loaded.model.get_output_embeddings().register_forward_hook(counted)
    monkeypatch.setattr(speed, "perf_counter", lambda: now)
    found = speed.probe(inputs, tapped=False)
    assert (found.forward, found.scored) == (0.0, pytest.approx(1.0))


@pytest.mark.parametrize(
    ("seconds", "count"),
    [(1.0, 3), (0.5 / 400, 10), (1e-9, 20)],
    ids=["slow: the least", "as many as take long enough", "fast: all that there are"],
)
def test_short_samples_are_timed_until_that_says_something(seconds: float, count: int) -> None:
    samples = tuple(random_corpus([40] * 20).samples)
    assert len(speed.enough(samples, list(samples[:3]), seconds)) == count


def test_no_more_tokens_wait_for_two_blocks_than_a_machine_holds() -> None:
    samples = tuple(random_corpus([2000] * 20).samples)
    assert len(speed.enough(samples, list(samples[:3]), 1e-9)) == speed.MOST_TOKENS // 2000
