"""Artifacts: how tests damage them, and what `conform` says about them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from quantaudit import cli
from quantaudit.card.schema import Card
from quantaudit.conform.artifacts.read import read_artifact
from quantaudit.conform.run import Conformance, conform
from quantaudit.policy import load_policy

DOWN = "model.layers.1.mlp.down_proj"
GATE = "model.layers.2.mlp.gate_proj"
OUT = "model.layers.0.self_attn.o_proj"


def rewrite(source: Path, target: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    path = target / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(path)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value(tensors[name]) if callable(value) else value
    save_file(tensors, path, metadata={"format": "pt"})
    return target


def compare(path: Path, card: Card) -> Conformance:
    return conform(read_artifact(path, card.model.modules), card, load_policy())


def codes_of(result: Conformance, *severities: str) -> set[tuple[str, str | None]]:
    wanted = severities or ("error", "warning")
    return {(finding.code, finding.module) for finding in result.findings if finding.severity in wanted}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", "conform", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err
