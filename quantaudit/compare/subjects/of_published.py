"""A published checkpoint as a subject of comparison: peaks outside of Linears' inputs, and nothing simulated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from quantaudit.card.published.lineage import is_mixture, lineage
from quantaudit.card.published.records import PeakSite, PublishedModel
from quantaudit.compare.subjects.subject import RESIDUAL, Conditions, PeakPlace, Subject
from quantaudit.stats.maxima.shape import Highest, MaximumShape, maximum_shape

CORPUS = "Clxxxx/eval_diverse_dataset"
"""The corpus of arXiv 2605.15572, tokenized for each family."""
_KINDS = {"hidden": RESIDUAL}
"""The paper's name for a tensor → ours, where they differ."""
_UNKNOWN = (
    *("corpus_sha256", "tokens", "truncated", "arithmetic", "attention", "device"),
    *("evaluation_tokens", "evaluation_samples", "evaluation_sha256", "policy", "policy_digest"),
)
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z])")


def published_subject(model: PublishedModel, where: str) -> Subject:
    """What is known of a published checkpoint. where: how it was given."""
    sites = list(model.sites())
    peaks = {place.kind: place for place in _places(sites)}
    largest = model.largest()
    kind = None if largest is None else _KINDS.get(largest.component, largest.component)
    amax = None if largest is None else abs(largest.value)
    residual = [None if value is None else abs(value) for value in model.layers.get("hidden", [])]
    return Subject(
        name=model.model,
        label=model.model,
        where=where,
        source="published",
        lineage=lineage(model.model_type),
        family=model.family or lineage(model.model_type),
        mixture=is_mixture(model.model_type),
        parameters=_parameters(model.model),
        layers=model.declared_layers,
        hidden_size=model.hidden_size,
        fingerprint=None,
        seal=None,
        contradictions=[],
        doubts=[],
        unmeasured=None,
        conditions=_conditions(model),
        peaks=peaks,
        largest=peaks[kind] if kind is not None else None,
        ties=[other for other, place in peaks.items() if other != kind and place.amax == amax],
        shape=_shape(model, sites, residual),
        residual_by_layer=residual,
        persistent_channels=None,
        schemes=[],
        kl_limits=[],
        top1_limits=[],
    )


def _shape(model: PublishedModel, sites: Iterable[PeakSite], residual: Sequence[float | None]) -> MaximumShape | None:
    """Of each tensor the highest element is known, and of all tensors the highest few."""
    shape = maximum_shape((Highest(tensor=site.site, values=[site.value]) for site in sites), residual)
    together = maximum_shape([Highest(tensor="", values=model.top)], [])
    return None if shape is None or together is None else replace(together, near=shape.near, step=shape.step)


def _places(sites: list[PeakSite]) -> Iterable[PeakPlace]:
    for component in dict.fromkeys(site.component for site in sites):
        largest = max((site for site in sites if site.component == component), key=lambda site: abs(site.value))
        yield PeakPlace(
            kind=_KINDS.get(component, component),
            amax=abs(largest.value),
            value=largest.value,
            site=largest.site,
            layer=largest.layer,
        )


def _conditions(model: PublishedModel) -> Conditions:
    unknown: dict[str, Any] = dict.fromkeys(_UNKNOWN)
    return Conditions(
        corpus=CORPUS,
        samples=model.samples,
        max_length=model.max_length,
        special_tokens="none",
        redacted=False,
        dtype="bfloat16",
        versions={},
        **unknown,
    )


def _parameters(name: str) -> int | None:
    """What a name says, such as 30B of `Qwen3-30B-A3B`; the published files say nothing else about sizes."""
    match = _SIZE.search(name)
    return None if match is None else round(float(match[1]) * 1e9)
