"""Real llm-compressor runs on tiny models, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import DataLoader

from quantaudit.corpus.tokens import TokenizedSample

W8A8 = """
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      ignore: [lm_head]
      config_groups:
        group_0:
          targets: [Linear]
          weights: {num_bits: 8, type: int, symmetric: true, strategy: channel}
          input_activations: {num_bits: 8, type: int, symmetric: true, strategy: tensor, observer: static_minmax}
"""
ASYMMETRIC = W8A8.replace(
    "input_activations: {num_bits: 8, type: int, symmetric: true",
    "input_activations: {num_bits: 8, type: int, symmetric: false",
)
FP8 = W8A8.replace("type: int", "type: float")
DYNAMIC = W8A8.replace("strategy: tensor, observer: static_minmax", "strategy: token, dynamic: true")


def loader(samples: list[TokenizedSample]) -> DataLoader[Any]:
    """One sample a batch, in this order, without padding."""
    rows = [
        {"input_ids": torch.from_numpy(sample.ids), "attention_mask": torch.ones(len(sample.ids), dtype=torch.int64)}
        for sample in samples
    ]
    return DataLoader(rows, batch_size=1)  # type: ignore[arg-type]


def open_model(folder: Path, dtype: str = "auto") -> Any:
    """A checkpoint's model with eager attention, which llm-compressor's sequential pipeline forces anyway."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def quantize(model: Any, recipe: str, samples: list[TokenizedSample], **options: Any) -> None:
    """Run `oneshot` in place."""
    from llmcompressor import oneshot

    oneshot(model=model, dataset=loader(samples), recipe=recipe, **options)


def quantized_checkpoint(
    source: Path, target: Path, recipe: str, samples: list[TokenizedSample], **options: Any
) -> Path:
    """Quantize a checkpoint and save it compressed, as it would be published."""
    model = open_model(source)
    quantize(model, recipe, samples, **options)
    model.save_pretrained(target, save_compressed=True)
    return target
