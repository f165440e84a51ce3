"""An existing artifact against a card: does every static range cover what was measured, is every scale a scale?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field

from quantaudit.card.schema import Card, Finding, SiteRow
from quantaudit.card.schema.verdict import SealState
from quantaudit.card.seal import seal_state
from quantaudit.common.outcome import SEVERITY_ORDER, Outcome
from quantaudit.conform.artifacts.records import Artifact, Checkpoint, InputRange
from quantaudit.conform.card_inputs import fused_groups, input_sites
from quantaudit.conform.model_check import check_model
from quantaudit.conform.rules import ranges as rules
from quantaudit.conform.rules.contents import contents
from quantaudit.conform.rules.model_settings import model_settings
from quantaudit.conform.rules.other_scales import broken_others
from quantaudit.conform.rules.schemes import schemes
from quantaudit.conform.rules.storage import stored_tensors
from quantaudit.conform.rules.weights import weights
from quantaudit.policy import Policy
from quantaudit.provenance import Row
from quantaudit.quantities import Number

UNKNOWN = (rules.UNKNOWN, "QA628")
"""Codes of what is not known."""


class RangeRow(Row):
    """One static input range, next to what was measured. low, high: the ends of the grid, in the tensor's units."""

    module: str
    site: str | None = Field(description="null where the card does not know the module, or did not measure it")
    tensor: str
    scale: Number
    zero_point: Number
    low: Number
    high: Number
    amax: Number = Field(description="the measured peak, over both splits")
    smoothed: bool = Field(
        description="whether channels are scaled before, so that the range is not of the tensor itself"
    )
    coverage: Number = Field(description="what the range reaches over what was measured; below 1 the peak is clipped")


class Conformance(Row):
    """What `quantaudit conform` found. outcome: fail on any error, else inconclusive where something is unmeasured."""

    artifact: str
    kind: str
    model: str = Field(description="the model that the card is about")
    seal: SealState = Field(default="unsealed", description="whether the card is as it was written")
    policy: str
    outcome: Outcome
    linears: int = Field(description="Linears that the card measured")
    static: int = Field(description="static input ranges in the artifact")
    dynamic: int = Field(description="Linears whose input scales are computed as the model runs")
    unquantized: list[str] = Field(description="Linears on the card that the artifact holds as they were")
    ranges: list[RangeRow] = Field(description="those without a coverage, then lowest coverage first")
    findings: list[Finding]


def conform(artifact: Artifact, card: Card, policy: Policy) -> Conformance:
    """Compare. Raises ModelError where the artifact's configuration is of another model than the card."""
    absent = check_model(artifact, card)
    sites = input_sites(card)
    pairs = [(row, sites.get(row.module)) for row in artifact.inputs]
    findings = [
        *rules.broken_inputs(pairs, policy),
        *broken_others(artifact.others),
        *rules.missing(artifact.missing),
        *absent,
        *model_settings(artifact, card),
        *(_contract(artifact.checkpoint, card) if artifact.checkpoint else ()),
        *rules.coverage(pairs, policy),
        *rules.disagreement(artifact.inputs, fused_groups(card), sites),
        *rules.unknown(pairs),
        *rules.nothing_static(artifact),
    ]
    rows = [range_row(row, site) for row, site in pairs]
    quantized = {row.module for row in artifact.inputs} | {row.module for row in artifact.others}
    quantized |= {row.module for row in artifact.missing} | set(artifact.dynamic)
    quantized |= set(artifact.checkpoint.quantized) if artifact.checkpoint else set()
    return Conformance(
        artifact=artifact.path,
        kind=artifact.kind,
        model=card.model.name,
        seal=seal_state(card),
        policy=policy.name,
        outcome=outcome(findings),
        linears=len(sites),
        static=len(artifact.inputs),
        dynamic=len(artifact.dynamic),
        unquantized=[name for name in sites if name not in quantized],
        ranges=sorted(rows, key=lambda row: (row.coverage is not None, row.coverage or 0.0)),
        findings=sorted(findings, key=_urgency),
    )


def _contract(checkpoint: Checkpoint, card: Card) -> list[Finding]:
    """What the files hold, against what their own configuration calls for, and against the model's weights."""
    return [*stored_tensors(checkpoint), *contents(checkpoint), *schemes(checkpoint), *weights(checkpoint, card)]


def outcome(findings: Sequence[Finding]) -> Outcome:
    """What the findings amount to: what is unmeasured never passes."""
    if any(finding.severity == "error" for finding in findings):
        return "fail"
    return "inconclusive" if any(finding.code in UNKNOWN for finding in findings) else "pass"


def range_row(row: InputRange, site: SiteRow | None) -> RangeRow:
    """A range and its coverage."""
    return RangeRow(
        module=row.module,
        site=site.name if site is not None and site.amax is not None else None,
        tensor=row.tensor,
        scale=row.scale,
        zero_point=row.zero_point,
        low=row.low,
        high=row.high,
        amax=site.amax if site else None,
        smoothed=row.factors is not None,
        coverage=rules.covered(row, site) if site else None,
    )


def _urgency(finding: Finding) -> tuple[int, str, float]:
    """Errors first, then by code; of ranges, those furthest from the peak first."""
    ratio = finding.value if finding.code == "QA604" and finding.value else 1.0
    return SEVERITY_ORDER[finding.severity], finding.code, -abs(math.log(ratio))
