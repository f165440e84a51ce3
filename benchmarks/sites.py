"""Seconds that `quantaudit sites` takes for large models, from their configuration alone.

python benchmarks/sites.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import typer

MODELS: dict[str, dict[str, Any]] = {
    "like Llama-3.1-70B": {
        "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "like Qwen3-235B-A22B": {
        "model_type": "qwen3_moe", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1536,
    },
    "like DeepSeek-V3": {
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "vocab_size": 129280, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "first_k_dense_replace": 3, "n_shared_experts": 1,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    },
}  # fmt: skip
"""Configurations as their checkpoints have them, as far as sizes go."""


def main() -> None:
    """Print the seconds of each."""
    for name, settings in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(settings), encoding="utf-8")
            start = perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "quantaudit", "sites", folder], check=True, capture_output=True, text=True
            )
            print(f"{name}: {perf_counter() - start:.1f} s, {done.stderr.strip().splitlines()[-1]}")


if __name__ == "__main__":
    typer.run(main)
