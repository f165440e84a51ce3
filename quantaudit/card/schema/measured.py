"""What was measured: peaks, tensors, and where they stand among published models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.provenance import Number, Row, Unmeasured

FP16_MAX = 65504.0
"""The largest finite FP16 number."""


class Peak(Row):
    """One element of a tensor that is among its largest."""

    value: Number
    sample: str
    domain: str
    position: int | None = Field(description="null where text is redacted, unless it is the first")
    token_id: int | None = Field(description="null where text is redacted; −1 for a patch of an image")
    token: str | None = Field(description="the token's text; null where text is redacted")
    channel: int
    token_kind: str | None = Field(default=None, description="special token, delimiter, other token or image patch")
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
    token_kind: str | None = None
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
