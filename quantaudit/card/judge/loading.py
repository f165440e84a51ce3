"""Rules that look at how a model was loaded, and say why it may not be the one that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quantaudit.card.schema import Finding
from quantaudit.card.text import counted
from quantaudit.provenance import Doubt, Provenance


class Entry(NamedTuple):
    """Why a finding matters, and what to do about it."""

    why: str
    remedy: str


ENTRIES = {
    "QA109": Entry(
        "What is stored and not used is a part of the model that the configuration leaves out.",
        "Give the config.json that belongs to these weights, or a checkpoint without what is none of its own.",
    ),
    "QA110": Entry(
        "Such matrices were converted wrongly or never written, so that what ran is not the model.",
        "Convert or download the checkpoint again; of a quantized one, audit the checkpoint it was made from.",
    ),
    "QA111": Entry(
        "An encoder predicts with the answer in sight: its perplexity and its activations are not a decoder's.",
        "Audit a causal language model; of a BERT-like one, set `is_decoder` in config.json if it is a decoder.",
    ),
    "QA112": Entry(
        "Another class may leave out part of the model, such as its vision tower, or compute something else.",
        "Audit with a transformers that has this class, or with --trust-remote-code if the checkpoint brings it; "
        "correct `architectures` in config.json where it names the same class by an old name.",
    ),
}
"""Findings about how a model was loaded, in words. All of them are errors, and none of their cards is READY."""


def unused_tensors(provenance: Provenance) -> list[Finding]:
    """QA109: stored tensors that the loaded model does not use, and that are not known to be harmless."""
    return _findings(provenance, ("unused", "head"), "QA109")


def no_weights(provenance: Provenance) -> list[Finding]:
    """QA110: weights that no training leaves: whole numbers (quantized codes read as they are), or a single value."""
    return _findings(provenance, ("values",), "QA110")


def reads_ahead(provenance: Provenance) -> list[Finding]:
    """QA111: the model's logits depend on tokens behind the one that they follow: it is no causal language model."""
    return _findings(provenance, ("ahead",), "QA111")


def other_class(provenance: Provenance) -> list[Finding]:
    """QA112: another class of model was loaded than the checkpoint names."""
    return _findings(provenance, ("class",), "QA112")


def _findings(provenance: Provenance, kinds: Sequence[str], code: str) -> list[Finding]:
    doubts = [doubt for doubt in provenance.model.doubts if doubt.kind in kinds]
    if not doubts:
        return []
    first = doubts[0]
    return [
        Finding(
            code=code,
            severity="error",
            module=first.module,
            message=_message(first, len(doubts) - 1),
            value=float(sum(doubt.count for doubt in doubts)),
            threshold=0.0,
            reason=ENTRIES[code].why,
            remedy=ENTRIES[code].remedy,
        )
    ]


def _message(doubt: Doubt, others: int) -> str:
    """What was found first, and how much more of it there is."""
    text = f"`{doubt.module}`: {doubt.text}" if doubt.module else doubt.text
    if doubt.kind == "values" and doubt.count > 1:
        text += f" ({doubt.count:,} matrices in all)"
    return text + (f"; the same holds of {counted(others, 'other module')}" if others else "")
