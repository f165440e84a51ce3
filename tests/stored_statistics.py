"""Files as the paper's reference repository stores them, made from the values that the package ships."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from quantaudit.card.published.records import PublishedModel

_NAMES = {"attention_output": "attn_output", "mlp_output": "mlp_output", "hidden": "hidden"}


def stored(model: PublishedModel, **changed: Any) -> dict[str, Any]:
    """One file's content: every tensor with its largest value, and a smaller one of the other sign.

    The largest tensor also has what the highest elements of all tensors lack.
    """
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
    values = {name: value for name, value in sites.items() if value is not None}
    highest = max(values, key=lambda name: abs(values[name]))
    lacking = Counter(model.top) - Counter(value for name, value in values.items() if name != highest)
    own = sorted(lacking.elements(), key=abs, reverse=True) or [values[highest]]
    statistics = {name: _site(*(own if name == highest else [value])) for name, value in values.items()}
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


def _site(*values: float) -> dict[str, Any]:
    signed = [*values, -values[-1] / 2]
    return {"topk_abs": list(map(abs, signed)), "topk_signed": signed}
