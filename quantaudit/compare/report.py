"""What a comparison says: as written to JSON, and read by every other form of it. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from quantaudit.common.outcome import EXIT_CODES, GateSeverity, Outcome
from quantaudit.compare.subjects.subject import PeakPlace, Subject
from quantaudit.policy import Status
from quantaudit.provenance import Row
from quantaudit.quantities import Count, Magnitude, Number, Share

SCHEMA_VERSION = "1.0"
"""History: 1.0 first edition."""


class Caveat(Row):
    """One thing that has to be known before numbers are compared. subjects: whom it is about, by index."""

    code: str
    title: str
    severity: GateSeverity
    subjects: list[Count]
    message: str
    undecided: list[str] = Field(description="what it leaves undecided: peaks, scores, verdicts, or one scheme")
    reason: str
    remedy: str


class PeakChange(Row):
    """One kind of tensor on both sides; null where one side lacks it."""

    kind: str
    baseline: PeakPlace | None
    other: PeakPlace | None
    ratio: Magnitude = Field(description="the other's amax over the baseline's")
    moved: bool | None = Field(description="whether it sits in another tensor; null where that is not known")


class ValueChange(Row):
    """A number on both sides, and the other minus the baseline with its interval; null where it is not known."""

    baseline: Number
    other: Number
    change: Number
    low: Number = Field(description="interval of `change` at the comparison's level")
    high: Number
    paired: bool = Field(
        description="whether it is over the same samples: by their domains, or of scores that differ in no number; "
        "otherwise both sides are taken as independent"
    )


class SchemeChange(Row):
    """One scheme on both sides."""

    scheme: str
    title: str
    baseline_status: Status | None
    other_status: Status | None
    kl: ValueChange = Field(description="nats per token")
    top1: ValueChange = Field(description="share of positions whose most likely token is unchanged")


class GroupChange(Row):
    """A fused group that is among the worst of one side under a scheme. Shares of the price, else of the damage."""

    scheme: str
    group: str
    shares_of: str
    baseline: Share
    other: Share


class ChannelChange(Row):
    """Channels of the residual stream that stand out in most layers, on both sides, or on one."""

    both: list[Count]
    gone: list[Count]
    new: list[Count]


class Change(Row):
    """One subject against the baseline. subject: its index."""

    subject: Count
    same_weights: bool
    peaks: list[PeakChange]
    channels: ChannelChange | None = Field(description="null where one side's are unknown, or of another width")
    schemes: list[SchemeChange]
    groups: list[GroupChange]


class ResidualShare(Row):
    """In how many subjects the largest activation lies in the residual stream."""

    residual: Count
    of: Count
    elsewhere: list[str] = Field(description="the others")
    ties: list[str] = Field(description="those of the others whose residual stream reaches the same magnitude")


class Span(Row):
    """The largest over the smallest maximum, of subjects of one text. of: how many they are; text: which, where others
    rest on another one.
    """

    smallest: str
    largest: str
    ratio: Magnitude
    decades: Magnitude = Field(description="log10 of the ratio")
    of: Count
    text: str | None


class MixturePair(Row):
    """A mixture of experts and the dense model of its kind that is nearest in size."""

    mixture: str
    dense: str
    ratio: Magnitude = Field(description="the dense model's maximum over the mixture's")


class Trajectory(Row):
    """The maximum along subjects of one shape, in the order in which they were given."""

    subjects: list[str]
    maxima: list[Magnitude]
    ratios: list[Magnitude] = Field(description="each over the one before")


class Variation(Row):
    """How much a published maximum varies between random parts of its corpus."""

    model: str
    samples: Count
    repeats: Count
    spread: Magnitude = Field(description="largest minus smallest, over the mean; what arXiv 2605.15572 reports")
    deviation: Magnitude = Field(description="standard deviation over the mean")


class Shapes(Row):
    """What the largest activations of several subjects are like."""

    of: Count = Field(description="subjects of which that is known")
    one_sign: Count = Field(description="those whose five highest elements have one sign")
    sudden: list[str] = Field(description="those whose residual stream grows tenfold or more at a layer")


class LandscapeFacts(Row):
    """What several subjects show together; null where there are too few for it. Ratios are of one text."""

    left_out: Count = Field(description="subjects that count in none of this, as their numbers may not be believed")
    residual: ResidualShare | None
    span: Span | None
    shapes: Shapes | None = None
    mixtures: list[MixturePair]
    trajectory: Trajectory | None
    variation: list[Variation]


class Decision(Row):
    """One limit on one subject."""

    limit: str
    subject: Count
    outcome: Outcome
    reason: str


class Comparison(Row):
    """Subjects, what differs in how they were made, and then in what was measured."""

    schema_version: str = SCHEMA_VERSION
    quantaudit_version: str
    level: float = Field(description="confidence level of intervals")
    subjects: list[Subject] = Field(description="the first is the baseline of all changes")
    caveats: list[Caveat]
    changes: list[Change]
    landscape: LandscapeFacts
    decisions: list[Decision]
    outcome: Outcome | None = Field(description="null where no limit was given")

    @property
    def exit_code(self) -> int:
        """0 within all limits or without any, 1 beyond one, 3 where that cannot be decided."""
        return 0 if self.outcome is None else EXIT_CODES[self.outcome]


def to_json(comparison: Comparison) -> str:
    """The whole comparison, for `Comparison.model_validate_json`."""
    return comparison.model_dump_json(indent=1) + "\n"
