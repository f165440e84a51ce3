"""QA420 to QA427: whether llm-compressor runs the recipe, and engines read what it saves as it was meant."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.gate.rules.phrases import some

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence

FEW_BITS = 4
"""Bits at and below which one scale for a whole weight leaves too few values for its rows."""


@rule(
    "QA420",
    "llm-compressor refuses the recipe",
    severity="error",
    why="`oneshot` ends with an error, in part only after calibration; the scheme was tried on one small Linear, or "
    "the modifier on this model's modules.",
    remedy="Change what the message names; `quantaudit advise` writes recipes that run.",
)
def refused(evidence: Evidence) -> Iterator[Hit]:
    """A scheme fails on a Linear, GPTQ reaches no module that has a scheme, or AWQ's mappings cannot be used."""
    for tried in evidence.trials:
        if tried.trial.refused is not None:
            yield Hit(
                message=f"{counted(len(tried.members), 'module')} with {tried.summary.title}: {tried.trial.refused}",
                module=tried.members[0],
            )
    for index, names in evidence.resolution.reached.items():
        if not names:
            parsed = evidence.recipe.modifiers[index]
            yield Hit(
                message=f"{parsed.name} finds no Linear to quantize: none of its targets has a scheme with weights",
                keys=parsed.keys,
                remedy="Give it a `scheme` and `targets` that match Linears, or remove it.",
            )
    for reach in evidence.resolution.awq:
        if reach.problem is not None:
            yield Hit(
                message=f"AWQ's mappings cannot be used: {reach.problem}",
                keys=reach.keys,
                remedy="Give `mappings` with this model's module names, and what the message asks for.",
            )


@rule(
    "QA421",
    "The engine reads another scheme than was saved",
    severity="error",
    why="llm-compressor gives a module the scheme of its exact name, else of the alphabetically first regular "
    "expression, else of its class; vLLM takes the first target that matches, in the order in which the groups are "
    "saved, looks for fused Linears under their fused name, and does not translate regular expressions where its own "
    "module names differ. The weights of one scheme are then loaded as if of the other.",
    remedy="Make the targets exclude each other, and match any name that an engine may ask for, such as "
    "`re:.*self_attn\\.(qkv|q|k|v)_proj$`.",
)
def parted(evidence: Evidence) -> Iterator[Hit]:
    """Linears that vLLM would load under another scheme than llm-compressor gives them."""
    # Not above: rules are also read for their texts, without torch.
    from quantaudit.gate.scheme_summary import describe

    rows = [
        (
            "unquantized" if parting.saved is None else describe(parting.saved).title,
            "as unquantized" if parting.read is None else f"as {describe(parting.read).title}",
            parting.target,
            parting.unit,
        )
        for parting in evidence.partings
    ]
    for (saved, read, target), same in groupby(
        sorted(rows, key=lambda row: (row[0], row[1], row[2] or "")), key=lambda row: row[:3]
    ):
        members = [member for row in same for member in row[3].members]
        by = f", by the target `{target}`" if target else ""
        yield Hit(
            message=f"{counted(len(members), 'module')} saved as {saved} are read {read}{by}: {some(members)}",
            module=members[0],
            value=float(len(members)),
        )


@rule(
    "QA422",
    "What engines build unquantized is quantized",
    severity="error",
    why="vLLM builds these Linears without a quantization method: their scales and packed weights have nowhere to go, "
    "so that the checkpoint does not load, or loads wrongly.",
    remedy="Add them to `ignore`, such as `re:.*shared_expert_gate$`.",
)
def unquantizable(evidence: Evidence) -> Iterator[Hit]:
    """Gates of shared experts, routers by name, indexers' keys, Mamba-1 projections: quantized by the recipe."""
    measured = {site.module for site in evidence.card.sites if site.kind == "router_logits"}
    rows = [(row, name) for name, row in evidence.unquantized.items() if name not in measured]
    for what, same in groupby(sorted(rows, key=lambda row: (row[0].what, row[1])), key=lambda row: row[0].what):
        alike = list(same)
        dequantized = alike[0][0].fp8_weights
        plain = [name for _, name in alike if dequantized and _fp8_weights(evidence, name)]
        other = [name for _, name in alike if name not in plain]
        for names, severity, said in (
            (other, None, "which vLLM builds unquantized"),
            (plain, "info", "which vLLM turns back into 16 bits as it loads"),
        ):
            if names:
                yield Hit(
                    message=f"{counted(len(names), 'module')} quantized, {what}, {said}: {some(names)}",
                    module=names[0],
                    value=float(len(names)),
                    severity="info" if severity == "info" else None,
                )


def _fp8_weights(evidence: Evidence, name: str) -> bool:
    weights = evidence.resolution.schemes[name].weights
    return (
        weights is not None and weights.num_bits == 8 and str(getattr(weights.type, "value", weights.type)) == "float"
    )


@rule(
    "QA423",
    "vLLM has no kernel for a scheme",
    severity="warning",
    why="vLLM 0.33 refuses a checkpoint with a scheme that it has no kernel for; routed experts have fewer kernels "
    "than other Linears, and none with static integer inputs.",
    remedy="Use a scheme that your engine runs; of routed experts, one with inputs that are quantized as they come, or "
    "weights alone.",
)
def without_kernel(evidence: Evidence) -> Iterator[Hit]:
    """Schemes that vLLM refuses, at Linears or at routed experts; and a cache other than FP8."""
    # Not above: rules are also read for their texts, without torch.
    from quantaudit.gate.vllm_kernels import has_kernel

    inside = {member for unit in evidence.units if unit.kind == "experts" for member in unit.members}
    for tried in evidence.trials:
        if tried.trial.format is None or tried.scheme.weights is None:
            continue
        for experts in (False, True):
            members = [name for name in tried.members if (name in inside) == experts]
            if members and not has_kernel(tried.scheme, tried.trial.format, experts=experts):
                what = "routed experts" if experts else "Linears"
                yield Hit(
                    message=f"no kernel for {what} with {tried.summary.title}, stored as {tried.trial.format}: "
                    f"{some(members)}",
                    module=members[0],
                    value=float(len(members)),
                )
    for parsed in evidence.recipe.modifiers:
        cache = getattr(getattr(parsed.modifier, "resolved_config", None), "kv_cache_scheme", None)
        if cache is not None and (cache.num_bits != 8 or str(getattr(cache.type, "value", cache.type)) != "float"):
            yield Hit(
                message=f"no kernel for a key-value cache of {cache.num_bits} bits that is not FP8",
                keys=(*parsed.keys, "kv_cache_scheme"),
                remedy="Quantize the cache with `num_bits: 8, type: float`.",
            )


@rule(
    "QA424",
    "Few bits with one scale for a whole tensor",
    severity="warning",
    why="Without a `strategy` a weight has one scale: at four bits, a row whose largest weight is an eighth of the "
    "tensor's has three values left.",
    remedy="Give weights `strategy: group` and a `group_size`, such as 128, or at least `strategy: channel`.",
)
def one_scale(evidence: Evidence) -> Iterator[Hit]:
    """Weights of four bits and fewer with one scale a tensor, given or by default."""
    for tried in evidence.trials:
        weights = tried.scheme.weights
        if weights is not None and weights.num_bits <= FEW_BITS and tried.summary.weight_strategy == "tensor":
            yield Hit(
                message=f"{counted(len(tried.members), 'module')} with {weights.num_bits}-bit weights and one scale a "
                f"tensor: {some(tried.members)}",
                module=tried.members[0],
                value=float(weights.num_bits),
                threshold=float(FEW_BITS),
            )


@rule(
    "QA425",
    "Blocks do not divide a weight",
    severity="warning",
    why="`oneshot` pads the last block without a word. Engines need in_features to be a multiple of the block, and so "
    "the out_features of all that is stacked before something else; a split over devices needs it of every part.",
    remedy="Add these modules to `ignore`, or give them another scheme, such as FP8_DYNAMIC.",
)
def odd_blocks(evidence: Evidence) -> Iterator[Hit]:
    """Weights in blocks that divide their in_features not, or not the out_features of what is fused before the last."""
    stacked = {
        member
        for unit in evidence.units
        for member in (unit.members[:-1] if unit.kind == "fused" else unit.members if unit.kind == "experts" else ())
    }
    for tried in evidence.trials:
        structure = tried.scheme.weights.block_structure if tried.scheme.weights is not None else None
        if structure is None:
            continue
        shapes = {name: evidence.shapes[name] for name in tried.members if len(evidence.shapes.get(name, ())) == 2}
        odd = [
            name
            for name, (out_features, in_features) in shapes.items()
            if in_features % structure[1] or (name in stacked and out_features % structure[0])
        ]
        if odd:
            out_features, in_features = shapes[odd[0]]
            yield Hit(
                message=f"{counted(len(odd), 'module')} that blocks of {structure[0]} by {structure[1]} do not divide: "
                f"`{odd[0]}` is {out_features:,} by {in_features:,}",
                module=odd[0],
                value=float(len(odd)),
            )


@rule(
    "QA427",
    "A modifier changes nothing",
    severity="warning",
    why="llm-compressor passes over an AWQ or SmoothQuant mapping that meets no quantized module, and over arguments "
    "that an observer does not know, and says so in its log at most.",
    remedy="Give mappings and arguments that fit this model and observer, or remove them.",
)
def without_effect(evidence: Evidence) -> Iterator[Hit]:
    """AWQ none of whose mappings meets what is quantized; observer arguments that are not read."""
    for reach in evidence.resolution.awq:
        if reach.problem is None and not reach.mappings:
            yield Hit(message="AWQ rescales nothing: no mapping meets a quantized module", keys=reach.keys)
    for tried in evidence.trials:
        for argument in tried.trial.unread:
            key = argument.rpartition(".")[2]
            place = evidence.place(tried.members[0])
            above = () if place is None else place
            place = next((keys for keys in evidence.recipe.positions.places if keys and keys[-1] == key), above)
            yield Hit(
                message=f"`{argument}` is not read by the observer of {counted(len(tried.members), 'module')}",
                keys=place,
            )
