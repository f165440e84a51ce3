"""Where peaks live: at which tokens, and in which channels; massive activations kept apart from outlier channels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from quantaudit.card.schema import PersistentChannel, PlaceRow, PlacesInfo
from quantaudit.card.sections import experts
from quantaudit.measure.profile import Profile
from quantaudit.stats import distribution, peaks
from quantaudit.stats.distribution import massive_threshold, quantiles
from quantaudit.stats.peaks import KEPT, Peaks
from quantaudit.stats.site import SiteStatistics

OUTLYING = 6.0
"""A channel is outlying at a layer when its amax is this many times the median channel's."""
LAYER_SHARE = 0.5
"""A channel persists when it is outlying in this share of the layers."""
FEW_TOKENS = 0.1
CHANNELS_SHOWN = 5

_SPECIAL = re.compile(
    r"<[|｜].*[|｜]>|</?(?:s|bos|eos|pad|unk|mask|cls|sep|start_of_turn|end_of_turn)>|\[(?:CLS|SEP|PAD|UNK|MASK|INST|/INST)\]"
)


KIND_IDS = {"image patch": -1, "special token": -2, "delimiter": -3, "other token": -4}
"""What a token can be, and the id that stands for it in a redacted profile; patches have theirs in all."""


def places_info(profile: Profile) -> PlacesInfo:
    """Shares of the highest peaks by kind of tensor, and the channels of the residual stream that persist."""
    kinds = dict.fromkeys(site.kind for site in profile.sites if site.kind not in experts.KINDS)
    rows = [row for kind in kinds if (row := place_row(profile, kind)) is not None]
    residual = [
        (site.layer if site.layer is not None else index, whole)
        for index, site in enumerate(profile.sites)
        if site.kind == "residual" and (whole := profile.whole(site.name)) is not None
    ]
    return PlacesInfo(kinds=rows, layers=len(residual), channels=persistent_channels(residual)[:CHANNELS_SHOWN])


def place_row(profile: Profile, kind: str) -> PlaceRow | None:
    """Where the KEPT highest elements of all tensors of one kind are; None where it has no peak."""
    highest, sites = peaks.zero(), 0
    for site in profile.sites:
        whole = profile.whole(site.name) if site.kind == kind else None
        if whole is not None and len(whole.peaks.value):
            highest, sites = peaks.merge(highest, whole.peaks), sites + 1
    if not sites:
        return None
    texts = profile.provenance.token_text
    kinds = {int(token): token_kind(int(token), texts.get(int(token))) for token in np.unique(highest.token)}
    return PlaceRow(
        kind=kind,
        tensors=sites,
        peaks=min(KEPT, len(highest.value)),
        # Where images ran, a vision tower's peaks are at patches: they have no token, and no first position.
        first_position=float(((highest.position == 0) & (highest.token != KIND_IDS["image patch"])).mean()),
        special_tokens=_share(highest, [token for token, name in kinds.items() if name == "special token"]),
        delimiters=_share(highest, [token for token, name in kinds.items() if name == "delimiter"]),
        channels=len(np.unique(highest.channel)),
    )


def token_kind(token: int, text: str | None) -> str:
    """What a peak's token is, in words: by its text, or by the id of a redacted profile."""
    redacted = next((kind for kind, id_ in KIND_IDS.items() if id_ == token), None)
    if redacted is not None:
        return redacted
    if text is None:
        return "other token"
    return "special token" if is_special(text) else "delimiter" if is_delimiter(text) else "other token"


def is_special(text: str) -> bool:
    """Whether a token's text looks like a control token (`<|im_start|>`, `</s>`, `[CLS]`), as far as text can tell."""
    return _SPECIAL.fullmatch(text.strip()) is not None


def is_delimiter(text: str) -> bool:
    """Whether a token is nothing but punctuation or white space."""
    return text != "" and all(c.isspace() or unicodedata.category(c)[0] == "P" for c in text)


def persistent_channels(layers: Sequence[tuple[int, SiteStatistics]]) -> list[PersistentChannel]:
    """Channels outlying in at least LAYER_SHARE of the layers, in most layers first. layers: (index, statistics)."""
    widths = {len(statistics.channel_amax) for _, statistics in layers}
    if len(widths) != 1:
        return []
    amax_LC = np.stack([statistics.channel_amax for _, statistics in layers]).astype(np.float64)
    with np.errstate(invalid="ignore"):
        outlying = amax_LC > OUTLYING * np.median(amax_LC, axis=1, keepdims=True)
    count = outlying.sum(0)
    chosen = np.flatnonzero(count >= max(1.0, LAYER_SHARE * len(layers)))
    rows = [_channel(int(channel), int(count[channel]), amax_LC[:, channel], layers) for channel in chosen]
    return sorted(rows, key=lambda row: (-row.layers, -(row.amax or 0.0), row.channel))


def token_bound(statistics: SiteStatistics, amax: float) -> float:
    """At most this share of the tokens reaches half of `amax` in any one channel: all such elements over the tokens."""
    absolute, counts = distribution.magnitudes(statistics.distribution)
    return min(1.0, float(counts[absolute >= amax / 2].sum()) / max(statistics.tokens, 1))


def peak_token_median(statistics: SiteStatistics, channel: int) -> float:
    """Median |x| of the token at which a channel is highest; the whole tensor's where that peak was not kept."""
    kept = np.flatnonzero(statistics.peaks.channel == channel)
    return float(statistics.peaks.median[kept[0]]) if len(kept) else quantiles(statistics.distribution, [0.5])[0]


def _channel(
    channel: int, count: int, amax_L: np.ndarray, layers: Sequence[tuple[int, SiteStatistics]]
) -> PersistentChannel:
    at = int(np.nanargmax(amax_L))
    layer, statistics = layers[at]
    amax, bound = float(amax_L[at]), token_bound(statistics, float(amax_L[at]))
    massive = amax > massive_threshold(peak_token_median(statistics, channel))
    return PersistentChannel(
        channel=channel,
        layers=count,
        amax=amax,
        layer=layer,
        tokens_at_most=bound,
        nature="many tokens" if bound >= FEW_TOKENS else "massive activation" if massive else "few tokens",
    )


def _share(highest: Peaks, tokens: Sequence[int]) -> float:
    return float(np.isin(highest.token, tokens).mean())
