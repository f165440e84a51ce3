"""Sites by their peaks: the largest elements, what a site is called, and which peaks can be trusted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from quantaudit.card.schema import Card, Peak, PeakStability, SiteRow
from quantaudit.card.text import factor, visible
from quantaudit.provenance import COMPONENTS
from quantaudit.stats.maxima.shape import Highest, MaximumShape, maximum_shape

NAME = 80
"""Characters of a tensor's name in a sentence."""
_IN_LAYER = re.compile(r"^.*?\blayers\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakLine:
    """The largest element of one site."""

    site: SiteRow
    peak: Peak


def reaches_quantizer(site: SiteRow) -> bool:
    """Whether a W8A8 recipe quantizes this tensor, that is, whether it is the input of a Linear."""
    return site.kind == "linear_input"


def projection_of(site: str, projections: Mapping[str, str]) -> str:
    """Projection of an input site: as the simulation names it, else what follows the layer and its sublayer."""
    group = site.removesuffix(".input")
    if group in projections:
        return projections[group]
    inside = _IN_LAYER.sub("", group)
    sublayer, _, rest = inside.partition(".")
    return rest if rest and sublayer != group else inside


def series_of(site: SiteRow, projections: Mapping[str, str]) -> str:
    """What a site is called in a chart: its kind in words, or 'down_proj input' for the input of a Linear."""
    if reaches_quantizer(site):
        return f"{projection_of(site.name, projections)} input"
    return site.kind.replace("_", " ")


def peak_lines(card: Card, *, quantized: bool) -> list[PeakLine]:
    """The largest element of each site that does (or does not) reach a quantizer, largest magnitude first."""
    lines = []
    for site in card.sites:
        finite = [peak for peak in site.peaks if peak.value is not None]
        if finite and reaches_quantizer(site) == quantized:
            lines.append(PeakLine(site=site, peak=max(finite, key=lambda peak: abs(peak.value or 0.0))))
    return sorted(lines, key=lambda line: (-abs(line.peak.value or 0.0), line.site.name))


def shape_of(card: Card) -> MaximumShape | None:
    """What is nearly as high as the paper's M, over its kinds of tensors; None where nothing but zeros was measured."""
    highest = (
        Highest(tensor=site.name, values=[peak.value for peak in site.peaks if peak.value is not None])
        for site in card.sites
        if site.kind in COMPONENTS
    )
    return maximum_shape(highest, residual_by_layer(card))


def shape_sentence(shape: MaximumShape) -> str:
    """What is nearly as high as the paper's M, in words."""
    near, signs = len(shape.near), {"positive": "all positive", "negative": "all negative", "mixed": "of both signs"}
    reach = "One tensor reaches" if near == 1 else f"{near:,} tensors reach"
    first = f"{visible(shape.near[0], NAME)}{'' if near == 1 else ' the first of them'}"
    text = (
        f"{reach} nine tenths of the largest activation outside of Linears’ inputs, {first}; the five highest elements "
        f"are {signs[shape.sign]}, the highest {factor(shape.concentration)} their mean."
    )
    if shape.step is None:
        return text
    if shape.step.ratio <= 1:
        return f"{text} The residual stream grows from no layer to the next."
    return f"{text} The residual stream grows most at layer {shape.step.layer:,}, {factor(shape.step.ratio)}."


def residual_by_layer(card: Card) -> list[float | None]:
    """The residual stream's largest magnitude behind each layer, in their order."""
    return [site.amax for site in card.sites if site.kind == "residual" and site.layer is not None]


def undrawn_sites(card: Card) -> list[str]:
    """Names of layer sites that a logarithmic chart leaves out: no finite peak, or a peak of zero."""
    return [site.name for site in card.sites if site.layer is not None and not site.amax]


def stable_peaks(card: Card) -> list[tuple[str, PeakStability]]:
    """(label, stability) of the card's leading peaks; one where both are at the same site."""
    if card.stability is None:
        return []
    pairs = (
        ("largest activation", card.stability.overall),
        ("largest that reaches a quantizer", card.stability.quantized),
    )
    leading = [(label, row) for label, row in pairs if row is not None]
    return leading[:1] if len({row.site for _, row in leading}) == 1 else leading
