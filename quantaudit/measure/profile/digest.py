"""The identity of a profile: equal measurements have equal digests, wherever they were made, redacted or not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from quantaudit.provenance import Provenance

_MODEL = {"architecture", "dtype", "files", "fingerprint", "config_sha256", "inputs"}
_COMPLETED = {"configuration", "generation_settings", "tokenizer_parts"}
"""Of the inputs, what a version of transformers makes of the files that have digests of their own."""
_CORPUS = {
    "sha256",
    "samples",
    "tokens",
    "truncated",
    "max_length",
    "seed",
    "special_tokens",
    "tokenizer_sha256",
    "images",
    "available",
}
_RUN = {"device", "attention", "arithmetic", "batch_size", "batch_tokens", "seed"}
_REDACTED_ARRAYS = {"peak_token", "peak_position"}


def content_digest(provenance: Provenance, statistics: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> str:
    """SHA-256 of what was measured, of what, on which text, and how it was run.

    statistics: name of a tensor's statistics → their arrays, in an order that does not depend on the run. Left out are
    places and names of files, versions and times, and all that redaction takes away.
    """
    hasher = hashlib.sha256(json.dumps(_identity(provenance), sort_keys=True).encode())
    for key, arrays in statistics:
        for name, array in sorted(arrays.items()):
            if name not in _REDACTED_ARRAYS:
                hasher.update(f"{key}/{name} {array.dtype} {array.shape}\n".encode())
                hasher.update(np.ascontiguousarray(array).data)
    return hasher.hexdigest()


def _identity(provenance: Provenance) -> Mapping[str, Any]:
    """Provenance without what may differ between equal measurements, as JSON values.

    A field that a later version adds is not there while it has its default, so that digests stay.
    """

    def dumped(row: Any, fields: set[str] | None = None) -> Any:
        return row.model_dump(mode="json", include=fields, exclude_defaults=True)

    model = dumped(provenance.model, _MODEL)
    for name in _COMPLETED & set(model.get("inputs") or ()):
        del model["inputs"][name]
    order = list(dict.fromkeys(sample.domain for sample in provenance.samples))
    return {
        "model": model,
        "corpus": dumped(provenance.corpus, _CORPUS),
        "run": dumped(provenance.environment, _RUN),
        "samples": [[order.index(row.domain), row.split, row.tokens] for row in provenance.samples],
        "sites": [dumped(site) for site in provenance.sites],
        "unmeasured": [dumped(row) for row in provenance.unmeasured],
        "shards": provenance.shards and dumped(provenance.shards),
    }
