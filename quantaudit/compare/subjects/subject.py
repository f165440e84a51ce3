"""What is compared: one card, or one published checkpoint, reduced to what both can have. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from quantaudit.card.schema.verdict import SealState
from quantaudit.policy import Status
from quantaudit.provenance import Row
from quantaudit.quantities import Count, LowerLimit, Magnitude, Number, Share, UpperLimit
from quantaudit.simulate.records import DomainScore
from quantaudit.stats.maxima.shape import MaximumShape

RESIDUAL, LINEAR_INPUT = "residual", "linear_input"
"""The stream that runs from block to block, and what quantization touches."""


class Conditions(Row):
    """How it was measured; null where that is not known."""

    corpus: str
    corpus_sha256: str | None
    samples: Count
    tokens: Count | None
    truncated: Count | None = Field(description="samples that were cut at max_length")
    max_length: Count
    special_tokens: str | None
    redacted: bool
    dtype: str
    arithmetic: str | None
    attention: str | None
    device: str | None
    evaluation_tokens: Count | None = Field(description="tokens that scores were taken on")
    evaluation_samples: Count | None
    evaluation_sha256: str | None = Field(description="of the names of these samples, in their order")
    policy: str | None
    policy_digest: str | None
    versions: dict[str, str] = Field(description="package → version")


class PeakPlace(Row):
    """The largest magnitude over all tensors of one kind, and where it is."""

    kind: str
    amax: Magnitude
    value: Number
    site: str
    layer: Count | None
    position: Count | None = None
    token: str | None = None
    channel: Count | None = None
    massive: Count | None = Field(default=None, description="massive activations over all tensors of the kind")
    nonfinite: Count = Field(default=0, description="values over all tensors of the kind that are not finite")
    first_position: Share = Field(default=None, description="share of the highest peaks that are at first positions")
    channels: Count | None = Field(default=None, description="how many channels hold the highest peaks")


class SchemeScore(Row):
    """The verdict on one scheme, and the scores that it rests on. definition: weights, activations and observer."""

    scheme: str
    title: str
    definition: dict[str, Any]
    status: Status | None = Field(description="null where it was simulated and not judged")
    kl: Magnitude
    kl_low: Magnitude
    kl_high: Magnitude
    kl_stderr: Magnitude
    top1: Share
    top1_stderr: Magnitude
    samples: Count
    nonfinite: bool
    domains: dict[str, DomainScore]
    worst: list[GroupShare] = Field(description="fused groups that cost most, first the worst")
    shares_of: Literal["price", "damage"] = Field(description="what the shares of `worst` are shares of")


class GroupShare(Row):
    """A fused group with its share of what all groups cost."""

    group: str
    share: Share


class Subject(Row):
    """One audit, or one published checkpoint."""

    name: str
    label: str = Field(description="the name, and where it lies if others have the name too")
    where: str = Field(description="path or name by which it was given")
    source: Literal["card", "published"]
    lineage: str = Field(description="type of the model without the part that says mixture")
    family: str
    mixture: bool
    parameters: Count | None
    layers: Count
    hidden_size: Count
    fingerprint: str | None
    seal: SealState | None = Field(description="null for what is published, which has none")
    contradictions: list[str]
    doubts: list[str] = Field(description="findings of its card that stop its own verdicts")
    unmeasured: Count | None = Field(description="Linears that no statistic covers; null for what is published")
    conditions: Conditions
    peaks: dict[str, PeakPlace] = Field(description="by kind of tensor")
    largest: PeakPlace | None = Field(description="the paper's M: over its kinds of tensors, inputs of Linears apart")
    ties: list[str] = Field(description="other kinds of tensors that reach the same magnitude")
    shape: MaximumShape | None = Field(description="what is nearly as high as M; null where nothing but zeros is known")
    residual_by_layer: list[Magnitude]
    persistent_channels: list[Count] | None = Field(description="of the residual stream; null where unknown")
    schemes: list[SchemeScore]
    kl_limits: list[UpperLimit] = Field(description="of the policy, so that scores are shown on their own side of them")
    top1_limits: list[LowerLimit]

    @property
    def marks(self) -> list[str]:
        """Why its numbers may not be believed, briefly; empty where nothing speaks against them."""
        doubts = {
            "edited": self.seal == "edited",
            "contradicts itself": bool(self.contradictions),
            "not to be trusted": bool(self.doubts),
        }
        return [mark for mark, there in doubts.items() if there]

    def scheme(self, name: str) -> SchemeScore | None:
        """One scheme's score; None where it was not simulated."""
        return next((row for row in self.schemes if row.scheme == name), None)


SchemeScore.model_rebuild()
