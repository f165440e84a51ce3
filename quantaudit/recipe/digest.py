"""When two recipes are the same: identity of a scheme, and of all that a recipe does to a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

WHOLE_RANGE = (None, "minmax", "memoryless_minmax", "static_minmax")
"""Observers that all give a weight its whole range: it is seen once."""
_NO_ARITHMETIC = {"observer", "observer_kwargs", "zp_dtype", "actorder", "group_size"}


def scheme_digest(schemes: Mapping[str, QuantizationScheme], changes: Iterable[str] = ()) -> str:
    """SHA-256 of which modules are quantized and how, and of other changes to the model, given as texts in order.

    schemes: by module path, in any order. Targets, storage formats and observers that come to the same are left out.
    """
    identities: dict[int, str] = {}
    for scheme in schemes.values():
        if id(scheme) not in identities:
            identities[id(scheme)] = identity(scheme)
    rows = [f"{name} {identities[id(schemes[name])]}" for name in sorted(schemes)]
    return hashlib.sha256("\n".join([*rows, *changes]).encode()).hexdigest()


def identity(scheme: QuantizationScheme) -> str:
    """What a scheme does to a Linear, as canonical JSON."""
    parts = {
        "weights": _arguments(scheme.weights, weight=True),
        "input_activations": _arguments(scheme.input_activations, weight=False),
        "output_activations": _arguments(scheme.output_activations, weight=False),
    }
    return json.dumps(parts, sort_keys=True)


def quantizes(scheme: QuantizationScheme) -> bool:
    """Whether a scheme quantizes weights, inputs or outputs at all."""
    return any(part is not None for part in (scheme.weights, scheme.input_activations, scheme.output_activations))


def input_identity(args: QuantizationArgs | None) -> str:
    """What an input goes through, whichever observer sets its range."""
    data = _arguments(args, weight=False) or {}
    return json.dumps({key: value for key, value in data.items() if not key.startswith("observer")}, sort_keys=True)


def _arguments(args: QuantizationArgs | None, *, weight: bool) -> dict[str, Any] | None:
    if args is None:
        return None
    data: dict[str, Any] = args.model_dump(mode="json", exclude=_NO_ARITHMETIC, exclude_none=True)
    if args.group_size and args.group_size > 0:
        data["group_size"] = args.group_size
    if args.dynamic is not True:
        observer = "minmax" if args.observer is None or (weight and args.observer in WHOLE_RANGE) else args.observer
        data |= {"observer": observer, "observer_kwargs": args.observer_kwargs}
    return data
