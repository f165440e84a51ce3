"""Weights on one device, text and statistics on another: every pass of every verb, on a device that is pretended.

What mixes tensors of two devices, or reads the device's memory as the processor's own, raises here as on a GPU. Not
walked are `verify`, whose checkpoints llm-compressor saves from a device that it knows, and experts block by block:
`test_gpu.py` has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.builders import save_checkpoint, tiny_model
from tests.device_walk import KINDS, check_by_block, check_report, check_verbs, save_text
from tests.families import family_model
from tests.pretend_device import DEVICE, NAME, pretend_device


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # of another thread the device is not known
    with pretend_device() as pretended:
        yield pretended


@pytest.mark.parametrize("family", KINDS)
def test_a_report_of_any_family_keeps_to_the_device(family: str, tmp_path: Path, device: torch.device) -> None:
    folder = save_checkpoint(tmp_path / "model", family_model(family))
    assert check_report(folder, save_text(tmp_path), device).environment.device == NAME


@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_block_by_block_it_is_the_same_on_the_device(family: str, tmp_path: Path, device: torch.device) -> None:
    check_by_block(save_checkpoint(tmp_path / "model", family_model(family)), device)


def test_every_verb_that_runs_a_model_keeps_to_the_device(tmp_path: Path, device: torch.device) -> None:
    folder = save_checkpoint(tmp_path / "model", tiny_model("llama"))
    check_verbs(folder, save_text(tmp_path), tmp_path, device, NAME)


def test_the_device_is_no_main_memory(device: torch.device) -> None:
    """Else all of the above would pass whatever it did."""
    here, there = torch.ones(3), torch.ones(3, device=device)
    assert there.device == DEVICE
    assert torch.equal((there + there.cpu().to(device)).cpu(), here * 2)
    stray = (lambda: there + here, lambda: there @ here, lambda: torch.cat([there, here]), lambda: there.add_(here))
    for mixed in stray:
        with pytest.raises(RuntimeError, match="tensors are on cuda:0 and in main memory"):
            mixed()
    with pytest.raises((RuntimeError, TypeError)):
        there.numpy()
