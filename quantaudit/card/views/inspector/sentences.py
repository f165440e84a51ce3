"""What a card knows of one fused group, in plain words. Every text is inert: names in it hide nothing and are short."""

from __future__ import annotations

from quantaudit.card.schema import Peak
from quantaudit.card.text import counted, number, percent, relative_error, token, visible
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.inspector.evidence import WORD_LIMIT, CardTables, GroupEvidence, title_of
from quantaudit.simulate.records import Cause
from quantaudit.simulate.sensitivity.ranking import cost_of

MUCH_BETTER = 0.25
"""Another scheme is a remedy where it leaves less than this share of what a group costs."""
REMEDIES = 3
_CLIPPED = 1 + 2.0**-7
"""A peak by so much above the largest code is beyond it, and not merely rounded to it."""
_CAUSES: dict[Cause, str] = {
    "massive token": "a massive token sets the one scale",
    "outlier channel": "an outlier channel sets the one scale",
    "either": "finer scales of either kind help",
    "neither": "finer scales would not help much",
}


def where(view: CardView, given: GroupEvidence) -> str:
    """Which tensor it is, and how much of it was seen."""
    name = f"Input of {visible(view.projections.get(given.group, given.group), limit=WORD_LIMIT)}"
    site = given.site
    if site is None:
        return f"{name}, which was not measured"
    layer = [] if site.layer is None else [f"layer {site.layer:,}"]
    return ", ".join([name, *layer, counted(site.channels, "channel"), counted(site.tokens, "token")])


def cost(view: CardView, tables: CardTables, given: GroupEvidence) -> str:
    """What quantizing it alone costs, and its part of what all groups cost."""
    value = None if given.row is None else cost_of(given.row, tables.measure)
    if value is None or tables.ranked is None:
        return ""
    unit = "nats of KL by estimate" if tables.measure == "price" else "block damage"
    share = f"{percent(value / tables.total)} of what all groups cost; " if tables.total > 0 else ""
    title = title_of(view, tables.ranked.name)
    return f"{number(value)} {unit} under {title}: {share}rank {given.rank:,} of {given.of:,}."


def remedy(view: CardView, tables: CardTables, given: GroupEvidence) -> str:
    """Schemes that leave little of what it costs, those that quantize activations first; nothing for a group that costs
    less than the mean.
    """
    own = None if given.row is None else cost_of(given.row, tables.measure)
    if own is None or tables.ranked is None:
        return ""
    if own * given.of < tables.total or not own:
        return "Nothing here: it costs less than the groups do on average."
    better = sorted(
        (tables.schemes[row.scheme].input_activations is None, value, title_of(view, row.scheme))
        for row in tables.rows[given.group]
        if row.scheme in tables.schemes
        and (value := cost_of(row, tables.measure)) is not None
        and value < MUCH_BETTER * own
    )[:REMEDIES]
    if not better:
        return "Leave it unquantized: no scheme that was tried costs much less here."
    named = "; or ".join(f"{title} ({number(value)})" for _, value, title in better)
    return (
        f"Quantize this group differently: {named}; or leave it unquantized. "
        "The fewest changes that are enough are what quantaudit advise finds."
    )


def under_one_scale(view: CardView, given: GroupEvidence) -> str:
    """How far the scale reaches, how coarse it is, and what it leaves of ordinary values."""
    site, error, grid = given.site, given.error, given.grid
    if site is None or error is None or grid is None or site.amax is None:
        return ""
    spacing = f"in steps of {number(grid.step)}" if grid.even else "in steps that grow with the value"
    text = (
        f"{title_of(view, error.scheme)} reaches {number(grid.largest)} "
        f"{spacing}: whatever is below {number(grid.zeroed)} becomes 0, "
        f"{percent(error.zeroed_fraction)} of the values. Half of all values are below {number(site.median)}."
    )
    if site.amax > grid.largest * _CLIPPED:
        text += f" What lies above {number(grid.largest)}, up to {number(site.amax)}, is clipped."
    return text


def peak(given: GroupEvidence) -> str:
    """The largest element in its context, and whether the next ones stand at such places too."""
    peaks = [peak for peak in (given.site.peaks if given.site else ()) if peak.value is not None]
    if not peaks:
        return ""
    first = peaks[0]
    text = f"{number(first.value)} {_place(first)}, channel {first.channel:,}"
    if first.median:
        text += f": {number(abs(first.value or 0.0) / first.median)} times the median of that token"
    if len(peaks) > 1:
        starts, channels = sum(row.position == 0 for row in peaks), len({row.channel for row in peaks})
        text += (
            f". Of the {len(peaks)} largest elements {starts or 'none'} {'is' if starts < 2 else 'are'} on a first "
            f"token; they stand in {counted(channels, 'channel')}"
        )
    return f"{text}."


def _place(peak: Peak) -> str:
    """Where an element stands: token, sample and domain, as far as the card says."""
    kind = "token" if peak.token_kind in (None, "other token") else visible(str(peak.token_kind), limit=WORD_LIMIT)
    word = "" if peak.token is None or peak.token_kind == "image patch" else f" “{token(peak.token)}”"
    sample, domain = (visible(name, limit=WORD_LIMIT) for name in (peak.sample, peak.domain))
    if peak.position == 0:
        return f"on the first token{word} of {sample} ({domain})"
    at = "" if peak.position is None else f" at position {peak.position:,}"
    return f"on the {kind}{word}{at} of {sample} ({domain})"


def finer_scales(tables: CardTables, given: GroupEvidence) -> str:
    """What a scale for each token, or each channel, would lose instead."""
    row = tables.granularity.get(given.group)
    if row is None or None in (row.per_tensor, row.per_token, row.per_channel):
        return ""
    return (
        f"In INT8 one scale loses {relative_error(row.per_tensor)} of the input’s energy, one for each token "
        f"{relative_error(row.per_token)}, one for each channel {relative_error(row.per_channel)}: "
        f"{_CAUSES[row.cause]}."
    )
