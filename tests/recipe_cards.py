"""Cards made of arithmetic over real module trees: which groups hurt, and by how much, is the test's to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from quantaudit.card.schema import Card, Coverage, PeakSummary, SiteRow, Verdict
from quantaudit.card.schema.measured import FP16_MAX
from quantaudit.model.sites import Group, discover
from quantaudit.provenance import ModuleInfo, Unmeasured
from quantaudit.simulate.records import (
    DomainScore,
    GroupRow,
    RecipeRow,
    ScaleRow,
    SchemeInfo,
    Simulation,
    TensorErrorRow,
)
from tests.card_factory import make_card, make_site
from tests.skeletons import module_infos, skeleton

STATIC, DYNAMIC = "int8_static_per_tensor", "int8_dynamic_per_token"
SCHEMES = [
    SchemeInfo(
        name=name,
        title=name,
        weights={"strategy": "channel"},
        input_activations=inputs,
        observer="absolute_maximum" if name == STATIC else None,
    )
    for name, inputs in (
        (STATIC, {"strategy": "tensor", "observer": "static_minmax"}),
        (DYNAMIC, {"strategy": "token", "dynamic": True}),
    )
]
EXACT = 1e-8
"""Standard error of a score, relative to a KL: as if it were known exactly."""
IN_BLOCKS = 12
"""Fused groups inside the decoder blocks of the small llama."""
CALM = 1e-4
"""Price, in nats, of a group that does no harm; its damage is the same number."""


@cache
def modules_and_groups(family: str) -> tuple[list[ModuleInfo], tuple[SiteRow, ...], tuple[Group, ...]]:
    """What a card needs to know of a small model of this family."""
    model = skeleton(family)
    found = discover(model)
    sites = tuple(make_site(row.name, row.kind, row.layer, 20.0, module=row.module, tap=row.tap) for row in found.sites)
    return module_infos(model), sites, found.groups


@cache
def sizes(family: str) -> tuple[int, int]:
    """Hidden size and vocabulary of a small model of this family."""
    config = skeleton(family).config.get_text_config()
    return config.hidden_size, config.vocab_size


def card_of(family: str = "llama", hurt: Mapping[str, float] | None = None, **changes: Any) -> Card:
    """A card of a small model. hurt: projection → price of each such group with a static input; others are calm."""
    modules, sites, groups = modules_and_groups(family)
    simulation = simulation_of(groups, hurt or {})
    base = make_card()
    hidden, vocabulary = sizes(family)
    model = base.model.model_copy(
        update={
            "modules": list(modules),
            "name": family,
            "architecture": _architecture(family),
            "hidden_size": hidden,
            "vocab_size": vocabulary,
        }
    )
    parts: dict[str, Any] = {
        "model": model,
        "sites": list(sites),
        "scales": scales_of(groups),
        "simulation": simulation,
        "coverage": coverage(),
        "peak": PeakSummary(overall=None, quantized=None, fp16_headroom=FP16_MAX / 20.0),
        "verdict": Verdict(policy="default", headline="", schemes=[]),
        "findings": [],
        "stability": None,
    }
    return base.model_copy(update={**parts, **changes})


def coverage(*unmeasured: Unmeasured) -> Coverage:
    return Coverage(
        sites=1, sites_measured=1, linears=1, linears_measured=1, tokens=131_072, unmeasured=list(unmeasured)
    )


def scales_of(groups: Sequence[Group], **changes: Any) -> list[ScaleRow]:
    row = ScaleRow(
        site="", group="", scheme=STATIC, observer="absolute_maximum", min=-20.0, max=20.0, scale=0.157, zero_point=0
    )
    return [row.model_copy(update={"site": group.site, "group": group.name, **changes}) for group in groups]


def simulation_of(groups: Sequence[Group], hurt: Mapping[str, float]) -> Simulation:
    """Prices and damages by group; whole-model rows that are their sums, as if prices added up exactly."""
    base = make_card().simulation
    assert base is not None
    rows = [_group(group, scheme.name, hurt) for scheme in SCHEMES for group in groups]
    sums = {
        scheme.name: sum(row.price or 0.0 for row in rows if row.scheme == scheme.name and row.layer is not None)
        for scheme in SCHEMES
    }
    inside = sum(group.layer is not None for group in groups)
    return base.model_copy(
        update={
            "evaluation": base.evaluation.model_copy(update={"samples": base.evaluation.samples[:20]}),
            "schemes": SCHEMES,
            "groups": rows,
            "sites": [_errors(group, hurt) for group in groups],
            "recipes": [recipe_row(name, kl, groups=inside) for name, kl in sums.items()],
        }
    )


def recipe_row(name: str, kl: float | None, **changes: Any) -> RecipeRow:
    """A whole-model score whose top-1 agreement falls with the KL."""
    row = RecipeRow(
        name=name,
        title=name,
        kl=kl,
        kl_stderr=None if kl is None else EXACT * kl,
        top1=None if kl is None else 1 - min(kl, 1.0) / 2,
        top1_stderr=None if kl is None else EXACT,
        perplexity=None,
        perplexity_base=10.0,
        tokens=4096,
        samples=20,
        nonfinite=False,
        groups=IN_BLOCKS,
        domains={},
    )
    row = row.model_copy(update=changes)
    if row.domains:
        return row
    whole = DomainScore(tokens=row.tokens, samples=row.samples, kl=row.kl, top1=row.top1)
    return row.model_copy(update={"domains": {"all": whole}})


def _architecture(family: str) -> str:
    return {"llama": "LlamaForCausalLM", "qwen3-moe": "Qwen3MoeForCausalLM", "gpt2": "GPT2LMHeadModel"}.get(family, "A")


def _price(group: Group, scheme: str, hurt: Mapping[str, float]) -> float:
    return hurt.get(group.projection, CALM) if scheme == STATIC else CALM


def _group(group: Group, scheme: str, hurt: Mapping[str, float]) -> GroupRow:
    price = _price(group, scheme, hurt)
    return GroupRow(
        group=group.name,
        projection=group.projection,
        members=list(group.members),
        layer=group.layer,
        scheme=scheme,
        damage=None if group.layer is None else price,
        damage_weights_only=0.0,
        price=price,
    )


def _errors(group: Group, hurt: Mapping[str, float]) -> TensorErrorRow:
    return TensorErrorRow(
        site=group.site,
        group=group.name,
        scheme=STATIC,
        observer="absolute_maximum",
        scale=0.157,
        zero_point=0,
        sqnr_db=30.0,
        bulk_sqnr_db=30.0,
        relative_mae=0.01,
        zeroed_fraction=0.97 if group.projection in hurt else 0.01,
        effective_levels=100.0,
        clip_rate=0.0,
    )
