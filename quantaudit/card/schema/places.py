"""Where peaks live: tokens, channels, experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from quantaudit.provenance import Row
from quantaudit.quantities import Count, Magnitude, Share


class PlaceRow(Row):
    """Where the highest peaks of all tensors of one kind are; shares are of `peaks`."""

    kind: str
    tensors: Count
    peaks: Count = Field(description="the highest elements over all these tensors, a hundred at most")
    first_position: Share
    special_tokens: Share = Field(description="as far as the token's text says")
    delimiters: Share = Field(description="tokens of nothing but punctuation or white space")
    channels: Count = Field(description="how many channels hold them")


class PersistentChannel(Row):
    """A channel of the residual stream whose amax stands out (six median channels) in at least half of the layers."""

    channel: Count
    layers: Count = Field(description="layers in which it stands out")
    amax: Magnitude
    layer: Count = Field(description="where amax was reached; the next two fields are of that layer")
    tokens_at_most: float = Field(
        ge=0, le=1, description="upper bound of the share of tokens that reach half of amax there"
    )
    nature: Literal["massive activation", "few tokens", "many tokens"] = Field(
        description="a peak of few tokens (massive: above 100 and 1,000 medians), or possibly an outlier channel"
    )


class PlacesInfo(Row):
    """Where peaks live."""

    kinds: list[PlaceRow]
    layers: Count = Field(description="layers whose residual stream was compared")
    channels: list[PersistentChannel] = Field(description="standing out in most layers first")


class ExpertLayer(Row):
    """The routed experts of one layer. Every list has one entry for each expert, in their order."""

    name: str
    layer: Count
    tokens: list[Count] = Field(description="tokens routed to the expert")
    amax: dict[str, list[Magnitude]] = Field(description="projection → largest |x| of its input over the routed tokens")
    amax_all_tokens: dict[str, list[Magnitude]] = Field(
        description="the same over all tokens, of projections that were run on all of them"
    )


class ExpertsInfo(Row):
    """The routed experts of a mixture, one by one."""

    enough: Count = Field(description="tokens below which an expert counts as unmeasured")
    layers: list[ExpertLayer]
    calibration: str = Field(description="which tokens static ranges were taken from")
    reading: str
