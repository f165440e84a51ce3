"""The card's data model: what `card.json` holds, and the only thing that renderers, gate and compare read.

A non-finite number is written as null; where that can happen the row says why (`nonfinite`). Quantiles are of |x|,
NumPy's `inverted_cdf`. Magnitudes are in the units of the tensor; errors carry their unit in their name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from quantaudit.errors import FormatError
from quantaudit.policy import Status
from quantaudit.provenance import CorpusInfo, EnvironmentInfo, ModelInfo, Number, Row, Unmeasured, explain
from quantaudit.simulate.records import CorrelationRow, ScaleRow, Simulation

SCHEMA_VERSION = "1.0"
"""History: 1.0 first edition."""

Severity = Literal["error", "warning", "info"]


class Peak(Row):
    """One element of a tensor that is among its largest."""

    value: Number
    sample: str
    domain: str
    position: int
    token_id: int
    token: str | None = Field(description="the token's text; null where text is redacted")
    channel: int
    median: Number = Field(default=None, description="median of |x| over the channels of the peak's own token")


class GlobalPeak(Row):
    """The largest magnitude of a set of sites."""

    site: str
    kind: str
    layer: int | None
    amax: Number
    value: Number
    domain: str | None
    position: int | None
    token: str | None
    channel: int | None


class PeakSummary(Row):
    """The paper's M and its counterpart among the tensors that quantization touches."""

    overall: GlobalPeak | None
    quantized: GlobalPeak | None = Field(description="largest peak at the input of a Linear")
    fp16_headroom: Number = Field(description="65,504 divided by the largest peak of the residual stream")


class Coverage(Row):
    """What was measured, and what was not."""

    sites: int
    sites_measured: int
    linears: int
    linears_measured: int
    tokens: int
    unmeasured: list[Unmeasured]


class SiteRow(Row):
    """One observed tensor over both splits. amax … rms in the tensor's units; median, p99 … of |x|."""

    name: str
    kind: str
    layer: int | None
    module: str
    tap: Literal["input", "output"]
    channels: int
    amax: Number
    min: Number
    max: Number
    mean: Number
    rms: Number
    median: Number
    p99: Number
    p999: Number
    p9999: Number
    tokens: int
    nonfinite: int
    massive: int = Field(
        description="elements with |x| > 100 and > 1,000 times the median of their own token (arXiv 2605.15572)"
    )
    peaks: list[Peak]
    domains: dict[str, Number] = Field(description="domain → amax")


class PublishedPeak(Row):
    """One row of the published landscape."""

    model: str
    peak: float
    site: str


class Landscape(Row):
    """Where this model's peak stands among published ones."""

    source: str
    published: list[PublishedPeak]
    rank: int | None = Field(description="1 = larger than every published peak")
    reading: str


class SubsetRow(Row):
    """The peak over all subsets of so many samples, taken without replacement."""

    samples: int
    mean: Number
    variation: Number = Field(description="standard deviation over mean")


class BucketRow(Row):
    """The peak of one domain's or one length's samples."""

    name: str
    samples: int
    amax: Number


class TailRow(Row):
    """What a generalized Pareto tail predicts for the largest of `horizon` new samples of the same kind."""

    samples: int
    exceedances: int = Field(description="samples that the tail was fitted to, the highest ones")
    horizon: int
    coverage: float = Field(description="nominal probability of the interval low … high")
    shape: Number = Field(description="posterior median of ξ: below 0 the tail ends, above 0 it is heavy")
    low: Number
    median: Number
    high: Number
    few_samples: bool = Field(description="whether the samples are too few for the interval to be trusted")
    reading: str


class PeakStability(Row):
    """How far the peak of one site can be trusted, from the maxima of single samples."""

    site: str
    samples: int
    left_out: int = Field(description="samples that held a non-finite value")
    amax: Number
    subsets: list[SubsetRow] = Field(description="sizes of which the corpus holds at least five times as many")
    by_domain: list[BucketRow]
    by_length: list[BucketRow]
    tail: TailRow | None = Field(description="null below 40 samples, or where nearly all reach the same value")
    reading: str


class ExceedanceRow(Row):
    """The evaluation split beyond the calibration split's absolute maximum at one site."""

    site: str
    calibration_amax: Number
    evaluation_amax: Number
    ratio: Number = Field(description="evaluation_amax over calibration_amax")
    samples: int = Field(description="evaluation samples")
    samples_beyond: int
    elements_beyond: Number = Field(description="share of all evaluation elements")


class ExceedanceInfo(Row):
    """Whether the evaluation split stays within the calibration range, over the inputs of Linears."""

    compared: int
    beyond: int
    worst: list[ExceedanceRow] = Field(description="largest ratio first")
    reading: str


class StabilityInfo(Row):
    """How far the peaks can be trusted, without running the model again."""

    overall: PeakStability | None
    quantized: PeakStability | None
    exceedance: ExceedanceInfo


class PlaceRow(Row):
    """Where the highest peaks of all tensors of one kind are; shares are of `peaks`."""

    kind: str
    tensors: int
    peaks: int = Field(description="the highest elements over all these tensors, a hundred at most")
    first_position: Number
    special_tokens: Number = Field(description="as far as the token's text tells")
    delimiters: Number = Field(description="tokens of nothing but punctuation or white space")
    channels: int = Field(description="how many channels hold them")


class PersistentChannel(Row):
    """A channel of the residual stream whose amax stands out (six median channels) in at least half of the layers."""

    channel: int
    layers: int = Field(description="layers in which it stands out")
    amax: Number
    layer: int = Field(description="where amax was reached; the next two fields are of that layer")
    tokens_at_most: float = Field(description="upper bound of the share of tokens that reach half of amax there")
    nature: Literal["massive activation", "few tokens", "many tokens"] = Field(
        description="a peak of few tokens (massive: above 100 and 1,000 medians), or possibly an outlier channel"
    )


class PlacesInfo(Row):
    """Where peaks live."""

    kinds: list[PlaceRow]
    layers: int = Field(description="layers whose residual stream was compared")
    channels: list[PersistentChannel] = Field(description="standing out in most layers first")


class ExpertLayer(Row):
    """The routed experts of one layer. Every list has one entry for each expert, in their order."""

    name: str
    layer: int
    tokens: list[int] = Field(description="tokens routed to the expert")
    amax: dict[str, list[Number]] = Field(description="projection → largest |x| of its input over the routed tokens")
    amax_all_tokens: dict[str, list[Number]] = Field(
        description="the same over all tokens, of projections that were run on all of them"
    )


class ExpertsInfo(Row):
    """The routed experts of a mixture, one by one."""

    enough: int = Field(description="tokens below which an expert counts as unmeasured")
    layers: list[ExpertLayer]
    calibration: str = Field(description="which tokens static ranges were taken from")
    reading: str


class Finding(Row):
    """One rule's result."""

    code: str
    severity: Severity
    module: str | None
    message: str
    value: Number
    threshold: Number
    reason: str
    remedy: str


class WorstGroup(Row):
    """A fused group that explains a verdict."""

    group: str
    damage: Number
    share: Number = Field(description="its damage over the sum of all groups' damages")
    amax: Number
    zeroed_fraction: Number
    explanation: str


class SchemeVerdict(Row):
    """The answer for one scheme."""

    scheme: str
    title: str
    status: Status
    kl: Number
    top1: Number
    perplexity: Number
    perplexity_base: Number
    reason: str
    remedy: str
    worst_groups: list[WorstGroup]


class Verdict(Row):
    """The answer, by scheme, under a named policy."""

    policy: str
    headline: str
    schemes: list[SchemeVerdict]


class Card(Row):
    """The activation card."""

    schema_version: str = SCHEMA_VERSION
    quantaudit_version: str
    created: str
    model: ModelInfo
    corpus: CorpusInfo
    environment: EnvironmentInfo
    peak: PeakSummary
    coverage: Coverage
    sites: list[SiteRow]
    scales: list[ScaleRow]
    simulation: Simulation | None
    verification: list[dict[str, Any]]
    correlation: list[CorrelationRow]
    stability: StabilityInfo | None
    places: PlacesInfo | None
    experts: ExpertsInfo | None = Field(default=None, description="null for a model without routed experts")
    landscape: Landscape
    findings: list[Finding]
    verdict: Verdict


def load_card(path: Path) -> Card:
    """Read and validate a card. Raises FormatError when it is missing, not JSON, or not a card of this version."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot read the card: {error}", where=str(path)) from error
    try:
        card = Card.model_validate_json(text)
    except ValidationError as error:
        raise FormatError(
            f"not an activation card: {explain(error)}",
            where=str(path),
            hint="make one with `quantaudit report`",
        ) from error
    if card.schema_version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise FormatError(
            f"card has schema {card.schema_version}, this version reads {SCHEMA_VERSION}",
            where=str(path),
            hint="make the card anew with `quantaudit report`",
        )
    return card


def dump_card(card: Card) -> str:
    """The card as JSON text, keys in the order of the model, ending in a newline."""
    return card.model_dump_json(indent=1) + "\n"
