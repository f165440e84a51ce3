"""QA515, QA519 and QA520: whether the model that was measured, the text, and the prediction can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from quantaudit.card.judge.findings import unlisted
from quantaudit.card.judge.simulated import worse_than_guessing
from quantaudit.card.judge.text import on_calibration_text
from quantaudit.card.judge.verdict import BROKEN, STOPPERS
from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, find_rule, rule
from quantaudit.common.rounding import significant

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence


@rule(
    "QA515",
    "The card itself cannot be trusted",
    severity="inconclusive",
    why="A model that was loaded wrongly, or is broken itself, makes every number of its card meaningless.",
    remedy="See the finding on the card, and make the card again.",
)
def stopped(evidence: Evidence) -> Iterator[Hit]:
    """The card has a finding that stops its own verdicts, or its numbers call for one under the gate's policy, or those
    of a simulation in addition to it do.
    """
    simulation, card = evidence.simulation, evidence.card
    for finding in card.findings:
        if finding.code in {BROKEN, *STOPPERS}:
            yield Hit(message=f"{finding.code} on the card: {finding.message}", value=finding.value, why=finding.reason)
    for finding in unlisted(card, evidence.policy, {BROKEN, *STOPPERS}):
        message = f"{finding.code} by the card's own numbers, although it is not listed: {finding.message}"
        yield Hit(message=message, value=finding.value, why=finding.reason)
    if simulation is None or simulation is card.simulation:
        return
    for code, hits in (
        ("QA104", worse_than_guessing(simulation, card.model, evidence.policy)),
        ("QA114", on_calibration_text(simulation.evaluation)),
    ):
        for hit in hits:
            why = hit.why or find_rule(code).why
            yield Hit(message=f"{code} of the simulation: {hit.message}", value=hit.value, why=why)


@rule(
    "QA519",
    "Evaluation samples that repeat others, or calibrate too",
    severity="info",
    why="They are no further evidence, and scores leave them out.",
    remedy="Give every text once, in one split.",
)
def repeats(evidence: Evidence) -> Iterator[Hit]:
    """What a score leaves out; a warning where it is of an earlier version, which left nothing out."""
    evaluation = None if evidence.simulation is None else evidence.simulation.evaluation
    if evaluation is None or evidence.score.source == "unknown":
        return
    if evaluation.left_out is None or evaluation.overlapping is None:
        yield Hit(
            message="whether the evaluated samples are distinct, and others than calibrated, is not recorded",
            severity="warning",
            why="The simulation is of an earlier version, which counts a text as often as it is given.",
            remedy="Simulate again, or make the card again.",
        )
    elif evaluation.left_out:
        yield Hit(
            message=f"{counted(evaluation.left_out, 'evaluation sample')} left out of the score, whose text calibrates "
            "too or repeats that of another one",
            value=float(evaluation.left_out),
            threshold=0.0,
        )


@rule(
    "QA520",
    "What llm-compressor saved was not what was predicted",
    severity="inconclusive",
    why="The verification of this very recipe did not agree with the simulation that the score comes from.",
    remedy="See why under the card's verification, mend the recipe or llm-compressor's run, and verify it again.",
)
def disproved(evidence: Evidence) -> Iterator[Hit]:
    """The card holds a verification of the recipe, by some pipeline, that failed although all of it was predicted."""
    for row in evidence.card.verification:
        if row.digest == evidence.resolution.digest and row.agrees is False:
            scores = f"{_kl(row.predicted.kl)} predicted, {_kl(row.actual.kl)} saved"
            message = f"`{row.recipe}` in the {row.pipeline} pipeline: {scores}. {row.reason.removesuffix('.')}"
            yield Hit(message=message, value=row.kl_error)


def _kl(kl: float | None) -> str:
    return "no finite KL" if kl is None else f"KL {significant(kl)}"
