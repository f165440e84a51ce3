"""Whether a model predicts each token from those before it alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.batches import Batch, forward
from quantaudit.provenance import Doubt

_TOKENS = 8
"""Tokens that are run: enough for any attention to look ahead."""
_SHARE = 1e-3
"""Change of the logits, in their standard deviations, that rounding does not make: masked tokens weigh nothing."""


def ahead_doubts(model: nn.Module, samples: Sequence[TokenizedSample], device: torch.device) -> list[Doubt]:
    """Whether another last token changes the logits before it: one short forward pass of three rows.

    Two rows are equal, so that what changes from row to row by rounding alone is known.
    """
    sample = next((s for s in samples if s.pictures is None and len(s.ids) > 1), None)
    if sample is None:
        return []
    rows = torch.from_numpy(sample.ids[:_TOKENS].copy()).repeat(3, 1)
    tokens = (int(token) for other in samples if other.pictures is None for token in other.ids)
    rows[2, -1] = next((token for token in tokens if token != rows[2, -1]), 0)
    cut = tuple(replace(sample, ids=row.numpy(), assistant=None) for row in rows)
    logits = forward(model, Batch(samples=cut, input_ids=rows.to(device)))[:, :-1].float()
    noise = float((logits[0] - logits[1]).abs().max())
    change = float((logits[0] - logits[2]).abs().max())
    if not math.isfinite(change) or change <= max(_SHARE * float(logits.std()), 4 * noise):
        return []
    return [Doubt(kind="ahead", text="the logits of a token change with the tokens behind it: this is no causal model")]
