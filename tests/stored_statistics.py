"""Files as the paper's reference repository stores them, made from the values that the package ships."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from quantaudit.card.published.records import PublishedModel

_NAMES = {"attention_output": "attn_output", "mlp_output": "mlp_output", "hidden": "hidden"}


def stored(model: PublishedModel, **changed: Any) -> dict[str, Any]:
    """One file's content: every tensor with its largest value, and a smaller one of the other sign."""
    sites = {
        "embedding_output": model.outside.get("embedding"),
        **{
            f"layer_{layer}_{_NAMES[component]}": value
            for layer in range(max(map(len, model.layers.values())))
            for component, values in model.layers.items()
            if (value := values[layer]) is not None
        },
        "final_layernorm": model.outside.get("final_norm"),
    }
    statistics = {name: _site(value) for name, value in sites.items() if value is not None}
    largest = max(row["topk_abs"][0] for row in statistics.values())
    return {
        "model_name": model.model,
        "model_type": model.model_type,
        "num_hidden_layers": model.declared_layers,
        "hidden_size": model.hidden_size,
        "num_samples": model.samples,
        "max_seq_len": model.max_length,
        "global_top5_abs": [largest],
        "per_layer_stats": statistics,
    } | changed


def save(path: Path, document: Any) -> Path:
    """Write it, gzipped where the name says so."""
    data = json.dumps(document).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def _site(value: float) -> dict[str, Any]:
    return {"topk_abs": [abs(value), abs(value) / 2], "topk_signed": [value, -value / 2]}
