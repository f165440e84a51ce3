"""Rules about the text: whether its samples are evidence, each of its own."""

from __future__ import annotations

from collections.abc import Iterator

from quantaudit.card.judge.evidence import CardEvidence
from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.simulate.records import Evaluation


@rule(
    "QA113",
    "Samples that repeat others; a warning where what evaluates has calibrated too.",
    severity="info",
    why="A text that was evaluated once says nothing more the second time, and one that calibrated says nothing of "
    "other text. Scores leave both out; statistics of tensors count every sample.",
    remedy="Give every text once, in one split: no second copies with a few words changed, no windows of one document "
    "that overlap.",
)
def repeated_samples(evidence: CardEvidence) -> Iterator[Hit]:
    """Samples that `corpus.repeats` finds: equal text but for white space, its beginning, and near copies."""
    corpus = evidence.provenance.corpus
    overlapping, repeated = corpus.overlapping or 0, corpus.repeated or 0
    parts = []
    if overlapping:
        parts.append(f"{overlapping:,} of {counted(corpus.evaluation.samples, 'evaluation sample')} calibrate too")
    if repeated:
        parts.append(f"{repeated:,} of {counted(corpus.samples, 'sample')} repeat another one of their split")
    if parts:
        yield Hit(
            message="; ".join(parts),
            value=float(overlapping + repeated),
            threshold=0.0,
            severity="warning" if overlapping else "info",
        )


@rule(
    "QA114",
    "Scores that were taken on text that calibrated, as there was no other.",
    severity="error",
    why="Scales fit the text that they were taken from: an error on the same text says nothing of other text.",
    remedy="Give evaluation samples of their own: other texts, or a `split` that keeps copies and parts of a text "
    "together.",
)
def evaluated_on_calibration(evidence: CardEvidence) -> Iterator[Hit]:
    """Scores that were taken on text that calibrated, as there was no other."""
    if evidence.simulation is not None:
        yield from on_calibration_text(evidence.simulation.evaluation)


def on_calibration_text(evaluation: Evaluation) -> Iterator[Hit]:
    """QA114 of an evaluation alone."""
    if evaluation.overlapping:
        yield Hit(
            message=f"the text of all {counted(evaluation.overlapping, 'evaluated sample')} calibrates too",
            value=float(evaluation.overlapping),
            threshold=0.0,
        )
