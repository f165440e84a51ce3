"""How far the peaks can be trusted."""

from __future__ import annotations

from pydantic import Field

from quantaudit.provenance import Row
from quantaudit.quantities import Count, Magnitude, Number, Share


class SubsetRow(Row):
    """The peak over all subsets of so many samples, taken without replacement."""

    samples: Count
    mean: Magnitude
    variation: Magnitude = Field(description="standard deviation over mean")


class BucketRow(Row):
    """The peak of one domain's or one length's samples."""

    name: str
    samples: Count
    amax: Magnitude


class TailRow(Row):
    """What a generalized Pareto tail predicts for the largest of `horizon` new samples of the same kind."""

    samples: Count
    exceedances: Count = Field(description="samples that the tail was fitted to, the highest ones")
    horizon: Count
    coverage: float = Field(ge=0, le=1, description="nominal probability of the interval low … high")
    shape: Number = Field(description="posterior median of ξ: below 0 the tail ends, above 0 it is heavy")
    low: Magnitude
    median: Magnitude
    high: Magnitude
    few_samples: bool = Field(description="whether the samples are too few for the interval to be trusted")
    reading: str


class PeakStability(Row):
    """How far the peak of one site can be trusted, from the maxima of single samples."""

    site: str
    samples: Count
    left_out: Count = Field(description="samples that held a non-finite value")
    amax: Magnitude
    subsets: list[SubsetRow] = Field(description="sizes of which the corpus holds at least five times as many")
    by_domain: list[BucketRow]
    by_length: list[BucketRow]
    tail: TailRow | None = Field(description="null below 40 samples, or where nearly all reach the same value")
    reading: str


class ExceedanceRow(Row):
    """The evaluation split beyond the calibration split's absolute maximum at one site."""

    site: str
    calibration_amax: Magnitude
    evaluation_amax: Magnitude
    ratio: Magnitude = Field(description="evaluation_amax over calibration_amax")
    samples: Count = Field(description="evaluation samples")
    samples_beyond: Count
    elements_beyond: Share = Field(description="share of all evaluation elements")


class ExceedanceInfo(Row):
    """Whether the evaluation split stays within the calibration range, over the inputs of Linears."""

    compared: Count
    beyond: Count
    worst: list[ExceedanceRow] = Field(description="largest ratio first")
    reading: str


class StabilityInfo(Row):
    """How far the peaks can be trusted, without running the model again."""

    overall: PeakStability | None
    quantized: PeakStability | None
    exceedance: ExceedanceInfo
