"""Card → rows: the look-ups and orderings that charts and templates share. Pure; nothing is formatted here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from statistics import median

from quantaudit.card.judge.findings import NUMBER, common_reason
from quantaudit.card.schema import (
    Card,
    ExpertLayer,
    Finding,
    Peak,
    PeakStability,
    SiteRow,
)
from quantaudit.common.outcome import Severity
from quantaudit.provenance import Unmeasured
from quantaudit.simulate.records import (
    GroupRow,
    RecipeRow,
    SchemeInfo,
    TensorErrorRow,
)

_LAYER_OR_EXPERT = re.compile(r"(?<=\.)\d+(?=\.|$)")
CAUSES = {"outlier channel": "outlier channel", "massive token": "massive token", "either": "token or channel"}
"""Cause of coarse scales → what a table says. Where finer scales of either kind help as much, both did the harm."""
_IN_LAYER = re.compile(r"^.*?\blayers\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLine:
    """One fused group under the static scheme, with the errors of its input and the damage under other schemes.

    kl, sampled: as in GroupRow. cause: why one scale is too coarse for its input; None where finer scales would save
    little, or none were tried.
    """

    group: str
    projection: str
    layer: int | None
    amax: float | None
    median: float | None
    sqnr_db: float | None
    bulk_sqnr_db: float | None
    relative_mae: float | None
    zeroed_fraction: float | None
    effective_levels: float | None
    damage: float | None
    damage_weights_only: float | None
    damage_dynamic: float | None
    price: float | None
    kl: float | None
    kl_stderr: float | None
    sampled: bool
    cause: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakLine:
    """The largest element of one site."""

    site: SiteRow
    peak: Peak


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertLine:
    """One layer's experts: tokens routed to them, how many saw too few, and the input with the largest element."""

    name: str
    layer: int
    experts: int
    fewest: int
    median: float
    most: int
    starved: int
    amax: float | None
    projection: str | None
    expert: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LandscapeLine:
    """One model of the landscape. `position`: 0 … 1 on a logarithmic scale over all lines. `here`: the audited one."""

    model: str
    peak: float
    site: str
    position: float
    here: bool


def reaches_quantizer(site: SiteRow) -> bool:
    """Whether a W8A8 recipe quantizes this tensor, that is, whether it is the input of a Linear."""
    return site.kind == "linear_input"


def input_of(group: str) -> str:
    """Name of the site that a fused group reads."""
    return f"{group}.input"


def projection_of(site: str, projections: dict[str, str]) -> str:
    """Projection of an input site: as the simulation names it, else what follows the layer and its sublayer."""
    group = site.removesuffix(".input")
    if group in projections:
        return projections[group]
    inside = _IN_LAYER.sub("", group)
    sublayer, _, rest = inside.partition(".")
    return rest if rest and sublayer != group else inside


def series_of(site: SiteRow, projections: dict[str, str]) -> str:
    """What a site is called in a chart: its kind in words, or 'down_proj input' for the input of a Linear."""
    if reaches_quantizer(site):
        return f"{projection_of(site.name, projections)} input"
    return site.kind.replace("_", " ")


def projections(card: Card) -> dict[str, str]:
    """Fused group → projection, of every simulated group."""
    groups = card.simulation.groups if card.simulation else []
    return {row.group: row.projection for row in groups}


def sites_by_name(card: Card) -> dict[str, SiteRow]:
    """Site name → row."""
    return {site.name: site for site in card.sites}


def static_scheme(card: Card) -> SchemeInfo | None:
    """The first scheme whose activation scales are fixed beforehand, None where nothing of that kind was simulated."""
    return next((scheme for scheme in _activation_schemes(card) if not _is_dynamic(scheme)), None)


def dynamic_scheme(card: Card) -> SchemeInfo | None:
    """The first scheme that computes activation scales as it runs."""
    return next((scheme for scheme in _activation_schemes(card) if _is_dynamic(scheme)), None)


def scheme_titles(card: Card) -> dict[str, str]:
    """Scheme name → title; every simulated name has one."""
    if card.simulation is None:
        return {}
    titles = {row.scheme: row.scheme for row in card.simulation.groups}
    return titles | {scheme.name: scheme.title for scheme in card.simulation.schemes}


def damage_rows(card: Card, scheme: SchemeInfo | None) -> dict[str, GroupRow]:
    """Fused group → its row under one scheme."""
    if card.simulation is None or scheme is None:
        return {}
    return {row.group: row for row in card.simulation.groups if row.scheme == scheme.name}


def tensor_errors(card: Card) -> dict[str, TensorErrorRow]:
    """Fused group → errors of its input under the static scheme, by that scheme's own observer where it has several."""
    scheme = static_scheme(card)
    if card.simulation is None:
        return {}
    chosen: dict[str, TensorErrorRow] = {}

    def fitness(row: TensorErrorRow) -> tuple[bool, bool]:
        return (
            scheme is not None and row.scheme == scheme.name,
            scheme is not None and row.observer == scheme.observer,
        )

    for row in card.simulation.sites:
        if row.group not in chosen or fitness(row) > fitness(chosen[row.group]):
            chosen[row.group] = row
    return chosen


def causes(card: Card) -> dict[str, str]:
    """Fused group → why one scale is too coarse for its input, in words; none where finer scales would hardly help."""
    found = card.simulation.granularity if card.simulation else []
    return {row.group: CAUSES[row.cause] for row in found if row.cause in CAUSES}


def group_lines(card: Card) -> list[GroupLine]:
    """Every fused group, most damaging under the static scheme first; without a damage last."""
    static, dynamic = static_scheme(card), dynamic_scheme(card)
    leading = static or dynamic
    others = damage_rows(card, dynamic)
    sites, errors, told = sites_by_name(card), tensor_errors(card), causes(card)
    lines = [
        _group_line(
            row, sites.get(input_of(row.group)), errors.get(row.group), others.get(row.group), told.get(row.group)
        )
        for row in damage_rows(card, leading).values()
    ]
    return sorted(lines, key=lambda line: (line.damage is None, -(line.damage or 0.0), line.group))


def single_lines(card: Card) -> list[GroupLine]:
    """The groups that were simulated alone, under the scheme of the others' damage, in the same order."""
    return [line for line in group_lines(card) if line.kl is not None]


def peak_lines(card: Card, *, quantized: bool) -> list[PeakLine]:
    """The largest element of each site that does (or does not) reach a quantizer, largest magnitude first."""
    lines = []
    for site in card.sites:
        finite = [peak for peak in site.peaks if peak.value is not None]
        if finite and reaches_quantizer(site) == quantized:
            lines.append(PeakLine(site=site, peak=max(finite, key=lambda peak: abs(peak.value or 0.0))))
    return sorted(lines, key=lambda line: (-abs(line.peak.value or 0.0), line.site.name))


def expert_lines(card: Card) -> list[ExpertLine]:
    """Every layer's experts, in the order of the layers."""
    return [_expert_line(layer, card.experts.enough) for layer in card.experts.layers] if card.experts else []


def _expert_line(layer: ExpertLayer, enough: int) -> ExpertLine:
    values = ((amax, name, i) for name, row in layer.amax.items() for i, amax in enumerate(row) if amax is not None)
    amax, projection, expert = max(values, default=(None, None, None))
    return ExpertLine(
        name=layer.name,
        layer=layer.layer,
        experts=len(layer.tokens),
        fewest=min(layer.tokens),
        median=median(layer.tokens),
        most=max(layer.tokens),
        starved=sum(tokens < enough for tokens in layer.tokens),
        amax=amax,
        projection=projection,
        expert=expert,
    )


def unmeasured_lines(card: Card) -> list[tuple[str, int, str]]:
    """(modules, how many, reason) of what was not measured; names and reasons alike but for their numbers are one."""
    kinds: dict[tuple[str, str], list[Unmeasured]] = {}
    for row in card.coverage.unmeasured:
        kinds.setdefault((_LAYER_OR_EXPERT.sub("*", row.module), NUMBER.sub("#", row.reason)), []).append(row)
    return [
        (name if len(rows) > 1 else rows[0].module, len(rows), common_reason([row.reason for row in rows]))
        for (name, _), rows in kinds.items()
    ]


def findings_of(card: Card, *severities: Severity) -> list[Finding]:
    """Findings of these severities, in the order of the severities and then of the card."""
    return [finding for severity in severities for finding in card.findings if finding.severity == severity]


def recipe_rows(card: Card) -> dict[str, RecipeRow]:
    """Recipe name → whole-model row."""
    return {row.name: row for row in card.simulation.recipes} if card.simulation else {}


def landscape_lines(card: Card) -> list[LandscapeLine]:
    """Published peaks and this model's own, largest magnitude first."""
    entries = [(row.model, row.peak, row.site, False) for row in card.landscape.published]
    overall = card.peak.overall
    if overall is not None and overall.amax:
        signed = overall.value if overall.value is not None else overall.amax
        entries.append((card.model.name, signed, overall.site, True))
    entries = [entry for entry in entries if entry[1]]
    positions = _log_positions([abs(peak) for _, peak, _, _ in entries])
    lines = [
        LandscapeLine(model=model, peak=peak, site=site, position=position, here=here)
        for (model, peak, site, here), position in zip(entries, positions, strict=True)
    ]
    return sorted(lines, key=lambda line: (-abs(line.peak), not line.here, line.model))


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
    found = [(label, row) for label, row in pairs if row is not None]
    return found[:1] if len({row.site for _, row in found}) == 1 else found


def _activation_schemes(card: Card) -> list[SchemeInfo]:
    schemes = card.simulation.schemes if card.simulation else []
    return [scheme for scheme in schemes if scheme.input_activations is not None]


def _is_dynamic(scheme: SchemeInfo) -> bool:
    # compressed_tensors knows a third value, "local": group scales are dynamic below a static global one.
    return bool((scheme.input_activations or {}).get("dynamic"))


def _group_line(
    row: GroupRow, site: SiteRow | None, error: TensorErrorRow | None, dynamic: GroupRow | None, cause: str | None
) -> GroupLine:
    return GroupLine(
        group=row.group,
        projection=row.projection,
        layer=row.layer,
        amax=site.amax if site else None,
        median=site.median if site else None,
        sqnr_db=error.sqnr_db if error else None,
        bulk_sqnr_db=error.bulk_sqnr_db if error else None,
        relative_mae=error.relative_mae if error else None,
        zeroed_fraction=error.zeroed_fraction if error else None,
        effective_levels=error.effective_levels if error else None,
        damage=row.damage,
        damage_weights_only=row.damage_weights_only,
        damage_dynamic=dynamic.damage if dynamic else None,
        price=row.price,
        kl=row.kl,
        kl_stderr=row.kl_stderr,
        sampled=row.sampled,
        cause=cause,
    )


def _log_positions(magnitudes: list[float]) -> list[float]:
    """Positions 0 … 1 of positive magnitudes on a logarithmic scale from the power of ten below to the largest."""
    if not magnitudes:
        return []
    low = math.floor(math.log10(min(magnitudes)))
    span = math.log10(max(magnitudes)) - low
    return [(math.log10(magnitude) - low) / span if span > 0 else 1.0 for magnitude in magnitudes]
