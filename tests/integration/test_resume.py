"""Runs that are cut off after each so many finished units, and resumed: they end in the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from quantaudit.advise.goal import Goal, Offers
from quantaudit.common.outputs import resume
from quantaudit.common.outputs.claims import Output
from quantaudit.common.outputs.resume import RunState
from quantaudit.common.resources import resource_dir
from quantaudit.measure.profile import profile_bytes
from quantaudit.pipeline.advise import advise_case
from quantaudit.pipeline.audit import audit
from quantaudit.pipeline.case import read_case
from quantaudit.pipeline.measure import measure
from quantaudit.settings import CaseSpec, Settings

STATIC = resource_dir("recipes") / "w8a8_static.yaml"


class Killed(BaseException):
    """What stands for SIGKILL."""


@pytest.fixture(autouse=True)
def every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics are kept after each batch, whatever it takes."""
    monkeypatch.setattr(resume, "SHARE", float("inf"))


Work = Callable[[RunState], Any]


def cut_off(work: Work, out: Path, units: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run until so many units are finished. Returns how many were."""
    put, count = RunState.put, 0

    def counted(state: RunState, key: str, data: bytes) -> None:
        nonlocal count
        if count >= units:
            raise Killed
        count += 1
        put(state, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "put", counted)
        with suppress(Killed):
            work(state_of(out, go_on=True))
    return count


def state_of(out: Path, *, go_on: bool) -> RunState:
    return RunState(Output(option="--out", path=out, folder=True), resume=go_on, say=lambda _line: None)


def check(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: int) -> None:
    """Cut off after a growing number of units, once alone and once again and again in one run; resume each."""
    whole = work(state_of(tmp_path / "whole", go_on=False))
    total = cut_off(work, tmp_path / "counted", 10**9, monkeypatch)
    assert total > cuts
    for cut in range(cuts):
        at = cut * total // cuts
        out = tmp_path / f"cut-{cut}"
        assert cut_off(work, out, at, monkeypatch) == at
        left = counting(work, out, monkeypatch)
        assert left[0] == whole
        assert left[1] <= total - at  # nothing that was finished is done again
    for _ in range(total):
        if cut_off(work, tmp_path / "often", max(total // 7, 1), monkeypatch) < max(total // 7, 1):
            break
    assert work(state_of(tmp_path / "often", go_on=True)) == whole


def counting(work: Work, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """What a resumed run gives, and how many units it had to finish."""
    put, count = RunState.put, 0

    def counted(state: RunState, key: str, data: bytes) -> None:
        nonlocal count
        count += 1
        put(state, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "put", counted)
        return work(state_of(out, go_on=True)), count


@pytest.mark.parametrize("model", ["dense", "mixture"])
def test_a_resumed_measurement_ends_in_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    settings = Settings.of(str(base / model), str(base / "texts.jsonl"), experts="auto", max_length=24)
    check(lambda state: profile_bytes(measure(settings, state=state)), tmp_path, monkeypatch, 3)


@pytest.mark.parametrize("score", ["gradient", "damage"])
def test_a_resumed_report_ends_in_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: str
) -> None:
    settings = Settings.of(
        str(base / "dense"),
        str(base / "texts.jsonl"),
        evaluation_tokens=64,
        score=score,
        single_groups="2",
        recipes=(STATIC,),
    )

    def work(state: RunState) -> tuple[bytes, str]:
        result = audit(settings, state=state)
        return profile_bytes(result.profile), result.simulation.model_dump_json()

    check(work, tmp_path, monkeypatch, 3)


def test_a_resumed_advice_ends_in_the_same_bytes(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantaudit.card.render import write_card

    settings = Settings.of(str(base / "dense"), str(base / "texts.jsonl"), evaluation_tokens=64)
    result = audit(settings)
    others = {"profile.safetensors": profile_bytes(result.profile)}
    write_card(result.card, tmp_path / "card", others=others)
    shutil.copy(STATIC, tmp_path / "static.yaml")
    case = CaseSpec(
        recipe=tmp_path / "static.yaml",
        card=tmp_path / "card" / "card.json",
        model=str(base / "dense"),
        evaluation_tokens=64,
    )

    def work(state: RunState) -> tuple[str, str]:
        advised = advise_case(read_case(case), Goal(max_kl=1e-9), Offers(), state=state)
        return advised.text, advised.advice.info.model_dump_json()

    check(work, tmp_path, monkeypatch, 3)
