"""A card as a subject of comparison."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from quantaudit.card.judge.agreement import self_contradictions
from quantaudit.card.judge.verdict import STOPPERS
from quantaudit.card.published.lineage import is_mixture, lineage
from quantaudit.card.schema import Card, SiteRow
from quantaudit.card.seal import seal_state
from quantaudit.card.views.peaks import residual_by_layer, shape_of
from quantaudit.compare.subjects.subject import Conditions, GroupShare, PeakPlace, SchemeScore, Subject
from quantaudit.provenance import COMPONENTS
from quantaudit.simulate.records import GroupRow, RecipeRow, SchemeInfo
from quantaudit.simulate.sensitivity.ranking import measure_of, shares, worst_first

WORST = 5
"""Groups that are kept of each scheme."""
PACKAGES = ("torch", "transformers", "compressed-tensors", "llmcompressor")


def card_subject(card: Card, where: str) -> Subject:
    """What of a card is compared. where: how it was given."""
    peaks = {place.kind: place for place in _places(card)}
    largest = [peaks[kind] for kind in COMPONENTS if kind in peaks and peaks[kind].amax is not None]
    largest.sort(key=lambda place: (-(place.amax or 0.0), _order(card.sites, place.site)))
    return Subject(
        name=card.model.name,
        label=card.model.name,
        where=where,
        source="card",
        lineage=lineage(card.model.model_type),
        family=lineage(card.model.model_type),
        mixture=card.experts is not None or is_mixture(card.model.model_type),
        parameters=card.model.parameters,
        layers=card.model.layers,
        hidden_size=card.model.hidden_size,
        fingerprint=card.model.fingerprint,
        seal=seal_state(card),
        contradictions=self_contradictions(card),
        doubts=[f"{row.code}: {row.message}" for row in card.findings if row.code in STOPPERS],
        unmeasured=card.coverage.linears - card.coverage.linears_measured,
        conditions=_conditions(card),
        peaks=peaks,
        largest=largest[0] if largest else None,
        ties=[place.kind for place in largest[1:] if place.amax == largest[0].amax],
        shape=shape_of(card),
        residual_by_layer=residual_by_layer(card),
        persistent_channels=None if card.places is None else sorted(row.channel for row in card.places.channels),
        schemes=list(_schemes(card)),
        kl_limits=card.verdict.limits.kl,
        top1_limits=card.verdict.limits.top1,
    )


def _conditions(card: Card) -> Conditions:
    simulation, packages = card.simulation, card.environment.packages
    return Conditions(
        corpus=card.corpus.name,
        corpus_sha256=card.corpus.sha256,
        samples=card.corpus.samples,
        tokens=card.corpus.tokens,
        truncated=card.corpus.truncated,
        max_length=card.corpus.max_length,
        special_tokens=card.corpus.special_tokens,
        redacted=card.corpus.redacted,
        dtype=card.model.dtype,
        arithmetic=card.environment.arithmetic,
        attention=card.environment.attention,
        device=card.environment.device,
        evaluation_tokens=simulation.evaluation.tokens if simulation else None,
        evaluation_samples=len(simulation.evaluation.samples) if simulation else None,
        evaluation_sha256=_digest(simulation.evaluation.samples) if simulation else None,
        policy=card.verdict.policy if card.verdict.schemes else None,
        policy_digest=card.verdict.policy_digest,
        versions={"quantaudit": card.quantaudit_version} | {k: packages[k] for k in PACKAGES if k in packages},
    )


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(names).encode("utf-8", "surrogatepass")).hexdigest()


def _places(card: Card) -> Iterable[PeakPlace]:
    """The largest magnitude of each kind of tensor, in the order of the card's sites."""
    rows = {row.kind: row for row in card.places.kinds} if card.places is not None else {}
    for kind in dict.fromkeys(site.kind for site in card.sites):
        sites = [site for site in card.sites if site.kind == kind]
        measured = [site for site in sites if site.amax is not None]
        site = max(measured or sites, key=lambda site: site.amax or 0.0)
        peak = next((peak for peak in site.peaks if peak.value is not None and abs(peak.value) == site.amax), None)
        row = rows.get(kind)
        yield PeakPlace(
            kind=kind,
            amax=site.amax,
            value=peak.value if peak else site.amax,
            site=site.name,
            layer=site.layer,
            position=peak.position if peak else None,
            token=peak.token if peak else None,
            channel=peak.channel if peak else None,
            massive=sum(site.massive for site in sites),
            nonfinite=sum(site.nonfinite for site in sites),
            first_position=row.first_position if row else None,
            channels=row.channels if row else None,
        )


def _order(sites: Sequence[SiteRow], name: str) -> int:
    return next((index for index, site in enumerate(sites) if site.name == name), len(sites))


def _schemes(card: Card) -> Iterable[SchemeScore]:
    if card.simulation is None:
        return
    rows = {row.name: row for row in card.simulation.recipes}
    for scheme in card.simulation.schemes:
        if scheme.name in rows:
            groups = [row for row in card.simulation.groups if row.scheme == scheme.name]
            yield _score(card, scheme, rows[scheme.name], groups)


def _score(card: Card, scheme: SchemeInfo, row: RecipeRow, groups: Sequence[GroupRow]) -> SchemeScore:
    verdict = next((item for item in card.verdict.schemes if item.scheme == scheme.name), None)
    ranked = worst_first(group for group in groups if group.layer is not None)
    worst = list(zip(ranked, shares(ranked), strict=True))[:WORST]
    return SchemeScore(
        scheme=scheme.name,
        title=scheme.title,
        definition=scheme.model_dump(mode="json", include={"weights", "input_activations", "observer"}),
        status=verdict.status if verdict else None,
        kl=row.kl,
        kl_low=verdict.kl_low if verdict else None,
        kl_high=verdict.kl_high if verdict else None,
        kl_stderr=row.kl_stderr,
        top1=row.top1,
        top1_stderr=row.top1_stderr,
        samples=row.samples,
        nonfinite=row.nonfinite,
        domains=row.domains,
        worst=[GroupShare(group=row.group, share=share) for row, share in worst],
        shares_of=measure_of(ranked),
    )
