"""Files of the paper's reference repository, `*_top5_stats.json`, read as published peaks; gzipped ones too."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantaudit.card.published.records import COMPONENTS, PublishedModel
from quantaudit.common.reading.json_document import parse_json
from quantaudit.common.reading.regular_files import read_bytes
from quantaudit.errors import FormatError
from quantaudit.provenance import explain
from quantaudit.stats.maxima.shape import TOP

MOST_BYTES = 64 << 20
"""Of a file, and of what a gzipped one unpacks to: those of 64 layers have 1.4 MiB."""
_GZIP = b"\x1f\x8b"
_OUTSIDE = {"embedding_output": "embedding", "final_layernorm": "final_norm"}
_IN_LAYER = {"attn_output": "attention_output", "mlp_output": "mlp_output", "hidden": "hidden"}
_LAYER = re.compile(r"layer_(\d{1,4})_(\w+)")
_MARK, _CARD = '"per_layer_stats"', '"schema_version"'
_HINT = "give a *_top5_stats.json of the reference repository, or a card.json"


def looks_like_reference(path: Path) -> bool:
    """Whether a file can be one of the reference repository's: by its content, as far as it can be read."""
    try:
        text = _text(path)
        return _MARK in text and _CARD not in text
    except (OSError, ValueError, zlib.error):
        return False


def read_reference(path: Path) -> PublishedModel:
    """One file as the peaks of a checkpoint. Raises FormatError where it is none of the reference repository's."""
    try:
        document = parse_json(_text(path), unique=True)
        return _model(document)
    except OSError as error:
        raise FormatError(f"cannot be read: {error.strerror or error}", where=str(path), hint=_HINT) from error
    except ValidationError as error:
        raise FormatError(f"no stored statistics: {explain(error)}", where=str(path), hint=_HINT) from error
    except (ValueError, TypeError, KeyError, zlib.error) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"no stored statistics: {reason}", where=str(path), hint=_HINT) from error


def _text(path: Path) -> str:
    data = read_bytes(path, MOST_BYTES)
    if data.startswith(_GZIP):
        unpacking = zlib.decompressobj(wbits=31)
        data = unpacking.decompress(data, MOST_BYTES)
        if unpacking.unconsumed_tail or not unpacking.eof:
            raise ValueError(f"gzipped, and cut short or larger than {MOST_BYTES:,} bytes")
    return data.decode("utf-8")


def _model(document: Any) -> PublishedModel:
    if not isinstance(document, Mapping) or not isinstance(document["per_layer_stats"], Mapping):
        raise ValueError("its per_layer_stats are no table")
    outside: dict[str, float | None] = {}
    found: dict[tuple[str, int], float | None] = {}
    highest: list[float] = []
    for name, row in document["per_layer_stats"].items():
        if name in _OUTSIDE:
            outside[_OUTSIDE[name]] = _largest(name, row)
        elif (match := _LAYER.fullmatch(name)) and match[2] in _IN_LAYER:
            found[_IN_LAYER[match[2]], int(match[1])] = _largest(name, row)
        else:
            continue
        highest += filter(math.isfinite, map(float, row["topk_signed"][:TOP]))
    # Blocks for predicting further tokens stand behind the layers that a configuration counts.
    count = max((layer for _, layer in found), default=-1) + 1
    layers = {component: [found.get((component, layer)) for layer in range(count)] for component in COMPONENTS}
    model = PublishedModel(
        model=document["model_name"],
        model_type=document["model_type"],
        declared_layers=document["num_hidden_layers"],
        hidden_size=document["hidden_size"],
        samples=document["num_samples"],
        max_length=document["max_seq_len"],
        outside=outside,
        layers={component: values for component, values in layers.items() if any(v is not None for v in values)},
        top=sorted(highest, key=abs, reverse=True)[:TOP],
    )
    _check_total(document, model)
    return model


def _largest(name: str, row: Any) -> float | None:
    """The signed value of a site's largest magnitude; None where it is not finite."""
    magnitudes, signed = row["topk_abs"], row["topk_signed"]
    if not magnitudes or len(magnitudes) != len(signed):
        raise ValueError(f"{name} has {len(magnitudes)} magnitudes and {len(signed)} signed values")
    value = float(signed[0])
    if not math.isfinite(value):
        return None
    if abs(value) != float(magnitudes[0]) or abs(value) < max(map(float, magnitudes)):
        raise ValueError(f"{name}: {value:g} is not its largest magnitude")
    return value


def _check_total(document: Mapping[str, Any], model: PublishedModel) -> None:
    largest, stated = model.largest(), document.get("global_top5_abs")
    if largest is None:
        raise ValueError("no finite peak")
    if stated and float(stated[0]) != abs(largest.value):
        raise ValueError(f"its global maximum is {float(stated[0]):g}, and that of its sites {abs(largest.value):g}")
