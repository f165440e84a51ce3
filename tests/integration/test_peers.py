"""What the benchmark next to ModelOpt makes of its configs, and how it says that it is missing; none is needed here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from quantaudit.errors import FormatError
from quantaudit.quant.schemes import FP8_STATIC, INT8_STATIC

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("peers")


def entry(member: str, part: str, bits: object, enable: bool = True) -> dict[str, Any]:
    return {"quantizer_name": f"{member}.{part}_quantizer", "enable": enable, "cfg": {"num_bits": bits}}


def subject() -> Any:
    groups = [SimpleNamespace(name="gate_up", members=("gate", "up")), SimpleNamespace(name="down", members=("down",))]
    return SimpleNamespace(schemes={"FP8_DEFAULT_CFG": FP8_STATIC, "INT8_DEFAULT_CFG": INT8_STATIC}, groups=groups)


def test_formats_of_fused_groups_are_recognized_in_a_config(peers: Any) -> None:
    entries = [entry(member, part, [4, 3]) for member in ("gate", "up") for part in ("weight", "input")]
    entries += [entry("down", "weight", 8, enable=False), {"quantizer_name": "*", "enable": False}]
    assert peers.chosen_schemes({"quant_cfg": entries}, subject()) == {"gate_up": FP8_STATIC.name, "down": None}


def test_a_fused_group_that_is_split_is_refused(peers: Any) -> None:
    entries = [entry("gate", part, 8) for part in ("weight", "input")]
    with pytest.raises(FormatError, match="gate_up"):
        peers.chosen_schemes({"quant_cfg": entries}, subject())


def test_a_missing_modelopt_is_one_line_and_exit_code_2(
    peers: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt", None)
    with pytest.raises(typer.Exit) as stop:
        peers.import_modelopt(None)
    assert stop.value.exit_code == peers.MISSING == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
