"""Smoothing alone, without quantization: which models llm-compressor's own mappings make another model of (QA426)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantaudit.common.logs import stdout_to_stderr
from tests.builders import save_checkpoint, tiny_tokenizer
from tests.families import family_model


@pytest.mark.parametrize(("family", "changes"), [("gemma2", True), ("gemma3", True), ("gemma1", False)])
def test_the_second_norm_of_a_sandwich_must_not_be_smoothed(family: str, changes: bool, tmp_path: Path) -> None:
    with stdout_to_stderr():
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
        from transformers import AutoModelForCausalLM

        save_checkpoint(tmp_path, family_model(family), tiny_tokenizer())
        model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
        ids = torch.randint(0, 250, (4, 24), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = model(ids).logits
        rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
        oneshot(
            model=model,
            processor=tiny_tokenizer(),
            recipe=[SmoothQuantModifier(smoothing_strength=0.8)],
            dataset=Dataset.from_dict(rows),
            num_calibration_samples=4,
            max_seq_length=24,
        )
        with torch.no_grad():
            error = float((model(ids).logits - before).norm() / before.norm())
    assert error > 1e-2 if changes else error < 1e-5
