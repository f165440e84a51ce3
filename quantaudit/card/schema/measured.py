"""What was measured: peaks, tensors, and where they stand among published models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.provenance import Row, Unmeasured
from quantaudit.quantities import Count, Magnitude, Number, Positive

FP16_MAX = 65504.0
"""The largest finite FP16 number."""


class Peak(Row):
    """One element of a tensor that is among its largest."""

    value: Number
    sample: str
    domain: str
    position: Count | None = Field(description="null where text is redacted, unless it is the first")
    token_id: int | None = Field(description="null where text is redacted; −1 for a patch of an image")
    token: str | None = Field(description="the token's text; null where text is redacted")
    channel: Count
    token_kind: str | None = Field(default=None, description="special token, delimiter, other token or image patch")
    median: Magnitude = Field(default=None, description="median of |x| over the channels of the peak's own token")


class GlobalPeak(Row):
    """The largest magnitude of a set of sites."""

    site: str
    kind: str
    layer: Count | None
    amax: Magnitude
    value: Number
    domain: str | None
    position: Count | None
    token: str | None
    token_kind: str | None = None
    channel: Count | None


class PeakSummary(Row):
    """The paper's M and its counterpart among the tensors that quantization touches."""

    overall: GlobalPeak | None
    quantized: GlobalPeak | None = Field(description="largest peak at the input of a Linear")
    fp16_headroom: Magnitude = Field(description="65,504 divided by the largest peak of the residual stream")


class Coverage(Row):
    """What was measured, and what was not."""

    sites: Count
    sites_measured: Count
    linears: Count
    linears_measured: Count
    tokens: Count
    unmeasured: list[Unmeasured]


class MagnitudesRow(Row):
    """Counts of |x| over both splits in bins of equal ratio: bin i holds 2^((first + i) / parts) ≤ |x| <
    2^((first + i + 1) / parts).
    """

    parts: Positive = Field(le=4, description="bins of an octave")
    first: int = Field(ge=-1024, le=1024)
    zeros: Count
    below: Count = Field(description="values other than zero under the first bin")
    counts: list[Count] = Field(min_length=1, max_length=32)


class SiteRow(Row):
    """One observed tensor over both splits. amax … rms in the tensor's units; median, p99 … of |x|."""

    name: str
    kind: str
    layer: Count | None
    module: str
    tap: Literal["input", "output"]
    channels: Count
    amax: Magnitude
    min: Number
    max: Number
    mean: Number
    rms: Magnitude
    median: Magnitude
    p99: Magnitude
    p999: Magnitude
    p9999: Magnitude
    tokens: Count
    nonfinite: Count
    massive: Count = Field(
        description="elements with |x| > 100 and > 1,000 times the median of their own token (arXiv 2605.15572)"
    )
    peaks: list[Peak]
    domains: dict[str, Magnitude] = Field(description="domain → amax")
    magnitudes: MagnitudesRow | None = Field(
        default=None,
        description="distribution of |x|, of tensors that a Linear reads; null for the others, where nothing but zeros "
        "is finite, and in older cards",
    )


class PublishedPeak(Row):
    """One row of the published landscape."""

    model: str
    peak: float
    site: str


class Landscape(Row):
    """Where this model's peak stands among published ones."""

    source: str
    published: list[PublishedPeak]
    rank: Positive | None = Field(description="1 = larger than every published peak")
    reading: str
