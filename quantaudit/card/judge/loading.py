"""Rules about how a model was loaded: why it may not be the one that was meant.

All of them are errors, and no card with one of them is READY.
"""

from __future__ import annotations

from collections.abc import Iterator

from quantaudit.card.judge.evidence import CardEvidence
from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.provenance import Doubt, Provenance


@rule(
    "QA109",
    "Stored tensors that the loaded model does not use, and that are not known to be harmless.",
    severity="error",
    why="What is stored and not used is a part of the model that the configuration leaves out.",
    remedy="Give the config.json that belongs to these weights, or a checkpoint without what is none of its own.",
)
def unused_tensors(evidence: CardEvidence) -> Iterator[Hit]:
    """Stored tensors that the loaded model does not use, and that are not known to be harmless."""
    return _hits(evidence.provenance, "unused", "head")


@rule(
    "QA110",
    "Weights that no training leaves: whole numbers (quantized codes read as weights), or a single value.",
    severity="error",
    why="Such matrices were converted wrongly or never written, so that what ran is not the model.",
    remedy="Convert or download the checkpoint again; of a quantized one, audit the checkpoint it was made from.",
)
def no_weights(evidence: CardEvidence) -> Iterator[Hit]:
    """Weights that no training leaves: whole numbers (quantized codes read as weights), or a single value."""
    return _hits(evidence.provenance, "values")


@rule(
    "QA111",
    "The model's logits depend on tokens behind the one that they follow: it is no causal language model.",
    severity="error",
    why="An encoder predicts with the answer in sight: its perplexity and its activations are not a decoder's.",
    remedy="Audit a causal language model; of a BERT-like one, set `is_decoder` in config.json if it is a decoder.",
)
def reads_ahead(evidence: CardEvidence) -> Iterator[Hit]:
    """Logits that depend on tokens behind the one that they follow."""
    return _hits(evidence.provenance, "ahead")


@rule(
    "QA112",
    "Another class of model was loaded than the checkpoint names.",
    severity="error",
    why="Another class may leave out part of the model, such as its vision tower, or compute something else.",
    remedy="Audit with a transformers that has this class, or with --trust-remote-code if the checkpoint brings it; "
    "correct `architectures` in config.json where it names the same class by an old name.",
)
def other_class(evidence: CardEvidence) -> Iterator[Hit]:
    """Another class of model than the checkpoint names."""
    return _hits(evidence.provenance, "class")


def _hits(provenance: Provenance, *kinds: str) -> Iterator[Hit]:
    """One hit for all doubts of these kinds."""
    doubts = [doubt for doubt in provenance.model.doubts if doubt.kind in kinds]
    if doubts:
        yield Hit(
            module=doubts[0].module,
            message=_message(doubts[0], len(doubts) - 1),
            value=float(sum(doubt.count for doubt in doubts)),
            threshold=0.0,
        )


def _message(doubt: Doubt, others: int) -> str:
    """The first doubt, and how much more of it there is."""
    text = f"`{doubt.module}`: {doubt.text}" if doubt.module else doubt.text
    if doubt.kind == "values" and doubt.count > 1:
        text += f" ({doubt.count:,} matrices in all)"
    return text + (f"; the same holds of {counted(others, 'other module')}" if others else "")
