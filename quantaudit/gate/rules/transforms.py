"""QA415, QA416 and QA426: whether SmoothQuant, AWQ and rotations fit the model, and come where they must."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.gate.rules.phrases import some
from quantaudit.recipe.yaml_positions import Keys

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence


@rule(
    "QA415",
    "A SmoothQuant mapping does not fit the model",
    severity="error",
    why="`oneshot` fails on a mapping that is matched in part, and passes over one that matches nothing.",
    remedy="Give `mappings` with this model's module names, or drop SmoothQuantModifier.",
)
def unfit_mappings(evidence: Evidence) -> Iterator[Hit]:
    """llm-compressor cannot resolve the mappings, or one of them hits nothing."""
    for smoothing in evidence.smoothings:
        if smoothing.problem is not None:
            yield Hit(message=f"mappings cannot be resolved: {smoothing.problem}", keys=smoothing.keys)
        for mapping in smoothing.unmatched:
            yield Hit(message=f"mapping {mapping} matches nothing", keys=smoothing.keys)


TRANSFORMS = (
    "SmoothQuantModifier",
    "AWQModifier",
    "SpinQuantModifier",
    "QuIPModifier",
    "LogarithmicEqualizationModifier",
)
"""Modifiers that change weights so that they, or activations, can be rounded with less harm."""


@rule(
    "QA416",
    "A transform comes after quantization",
    severity="error",
    why="Scales are calibrated before the transform changes weights and activations, so that they fit neither.",
    remedy="Put the transform before the modifier that quantizes these modules.",
)
def late_transforms(evidence: Evidence) -> Iterator[Hit]:
    """SmoothQuant, AWQ or a rotation changes modules that a modifier above it quantizes; else the order is free."""
    claimed = evidence.resolution.claimed
    for index, parsed in enumerate(evidence.recipe.modifiers):
        earlier = [name for name, first in claimed.items() if first < index]
        if parsed.name not in TRANSFORMS or not earlier:
            continue
        changed = _changed(evidence, index)
        late = [name for name in earlier if changed is None or name in changed]
        if late:
            yield Hit(
                message=f"{parsed.name} comes after a modifier that quantizes {counted(len(late), 'module')} that it "
                f"changes: {some(late)}",
                keys=parsed.keys,
                module=late[0],
            )


def _changed(evidence: Evidence, index: int) -> frozenset[str] | None:
    """Modules whose weights a transform changes; None where that may be any."""
    for smoothing in evidence.smoothings:
        if smoothing.modifier == index:
            return smoothing.spec.changed if smoothing.problem is None else None
    for reach in evidence.resolution.awq:
        if reach.modifier == index:
            return reach.changed if reach.problem is None else None
    return None


@rule(
    "QA426",
    "A smoothed norm has a reader that is left out",
    severity="error",
    why="The norm's output is divided, channel by channel, and only the Linears of the mapping are multiplied to make "
    "up for it: whatever else reads the norm gets inputs that are too small. A router chooses other experts. The "
    "second of two norms around a block (Gemma 2 and 3) is read by the residual stream alone: llm-compressor's own "
    "mappings divide it, and the model is another one before anything is quantized.",
    remedy="Name every module that reads the norm in the mapping, or leave the norm out of the mappings. For Gemma, "
    "give `mappings` with pre_feedforward_layernorm for gate_proj and up_proj.",
)
def forgotten_readers(evidence: Evidence) -> Iterator[Hit]:
    """SmoothQuant or AWQ balance some readers of a norm only; a warning where llm-compressor inferred the mapping, but
    for a norm that the residual stream reads: that was run on tiny models, and each of them was another one after."""
    by_step: dict[tuple[str, Keys, bool, bool], list[tuple[str, tuple[str, ...]]]] = {}
    for step in _steps(evidence):
        for norm, balance_layers in step.mappings:
            for router, forgotten in (
                (False, _forgotten(evidence, norm, balance_layers)),
                (True, _routers(evidence, balance_layers)),
            ):
                if forgotten:
                    key = (step.name, step.keys, step.inferred, router)
                    by_step.setdefault(key, []).append((norm, forgotten))
    for (name, keys, inferred, router), rows in by_step.items():
        norm, forgotten = rows[0]
        readers = [reader for _, row in rows for reader in row]
        yield Hit(
            message=f"{name} divides the output of {counted(len(rows), 'norm')}, such as `{norm}`, and forgets "
            f"{counted(len(readers), 'router' if router else 'reader')} of it: {some(forgotten)}",
            keys=keys,
            module=norm,
            value=float(len(readers)),
            severity="warning" if router or (inferred and not any(map(_is_stream, readers))) else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One smoothing modifier. mappings: norm, and the modules that make up for it; inferred: by llm-compressor."""

    name: str
    keys: Keys
    mappings: Sequence[tuple[str, tuple[str, ...]]]
    inferred: bool


def _steps(evidence: Evidence) -> Iterator[_Step]:
    smoothings = [(row.modifier, row.spec.mappings) for row in evidence.smoothings if row.problem is None]
    awq = [(row.modifier, row.mappings) for row in evidence.resolution.awq if row.problem is None]
    for index, mappings in (*smoothings, *awq):
        parsed = evidence.recipe.modifiers[index]
        yield _Step(
            name=parsed.name,
            keys=parsed.keys,
            # The output of a Linear is read by what the mapping names, and has no other reader.
            mappings=[row for row in mappings if not evidence.is_linear(row[0])],
            inferred="mappings" not in parsed.modifier.model_fields_set or parsed.modifier.mappings is None,
        )


OUTPUT_NORMS = {
    "post_attention_layernorm": ("pre_feedforward_layernorm", "pre_mlp_layernorm", "post_feedforward_layernorm"),
    "post_feedforward_layernorm": ("pre_feedforward_layernorm", "post_attention_layernorm"),
}
"""Norms whose output goes into the residual stream, not into a Linear, where any of these is next to them (Gemma,
OLMo 2)."""


_STREAM = " (its residual stream)"


def _is_stream(reader: str) -> bool:
    return reader.endswith(_STREAM)


def _forgotten(evidence: Evidence, norm: str, balance_layers: Sequence[str]) -> tuple[str, ...]:
    """Linears that read the output of a norm and are not balanced; the residual stream, as `residual of …`, too."""
    parent, _, leaf = norm.rpartition(".")
    if any(f"{parent}.{sibling}" in evidence.modules for sibling in OUTPUT_NORMS.get(leaf, ())):
        return (f"{parent}{_STREAM}",)
    inside = frozenset(balance_layers)
    forgotten: dict[str, None] = {}
    for unit in evidence.units:
        if unit.kind == "fused" and not inside.isdisjoint(unit.members):
            forgotten |= dict.fromkeys(member for member in unit.members if member not in inside)
        if unit.kind == "experts" and not inside.isdisjoint(unit.members):
            leaves = _stacked_with({member.rpartition(".")[2] for member in unit.members if member in inside})
            forgotten |= dict.fromkeys(
                member for member in unit.members if member.rpartition(".")[2] in leaves and member not in inside
            )
    forgotten |= dict.fromkeys(_of_one_block(evidence, inside))
    forgotten |= dict.fromkeys(_same_input(evidence, inside, parent))
    return tuple(forgotten)


def _stacked_with(leaves: set[str]) -> set[str]:
    """These projections, and those that the engine stacks with them, which read the same tensor."""
    from quantaudit.model.engine_units import FUSED_LINEARS

    return leaves.union(*(row.members for row in FUSED_LINEARS if not leaves.isdisjoint(row.members)))


_SHARED = ("shared_expert", "shared_experts", "shared_mlp")
_READS = ("gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1")


def _of_one_block(evidence: Evidence, balance_layers: frozenset[str]) -> Iterator[str]:
    """Shared experts, their gate and routed experts read one tensor: those that are not balanced where another is."""
    for unit in evidence.units:
        if unit.kind != "experts":
            continue
        block = unit.name.rpartition(".")[0]
        shared = [
            name
            for name in evidence.modules
            if evidence.is_linear(name)
            and any(name.startswith(f"{block}.{child}.") for child in _SHARED)
            and name.rpartition(".")[2] in _READS
        ]
        routed = [name for name in unit.members if name.rpartition(".")[2] in _READS]
        gate = [name for name in (f"{block}.shared_expert_gate",) if name in evidence.modules]
        readers = [*shared, *routed, *gate]
        if any(name in balance_layers for name in readers):
            yield from (name for name in [*shared, *gate, *routed] if name not in balance_layers)


def _same_input(evidence: Evidence, balance_layers: frozenset[str], layer: str) -> Iterator[str]:
    """Linears of the layer whose measured input is that of a balanced one, to the last digit of five statistics.

    A layer in which every input looks the same was not measured, and says nothing.
    """
    inputs = {
        member: (site.channels, site.tokens, site.min, site.max, site.mean, site.rms, site.median)
        for group, site in evidence.linear_inputs
        for member in group
        if member.startswith(f"{layer}.") and site.amax
    }
    if len(set(inputs.values())) < 2:
        return
    read = {inputs[name] for name in balance_layers if name in inputs}
    yield from (name for name, statistics in inputs.items() if statistics in read and name not in balance_layers)


def _routers(evidence: Evidence, balance_layers: Sequence[str]) -> tuple[str, ...]:
    """Routers of blocks whose experts, routed or shared, are balanced, and which are not."""
    inside = frozenset(balance_layers)
    routers = {site.module for site in evidence.card.sites if site.kind == "router_logits"}
    forgotten = []
    for unit in evidence.units:
        block = unit.name.rpartition(".")[0]
        if unit.kind == "experts" and any(name.startswith(f"{block}.") for name in balance_layers):
            outside = [name for name in routers if name.startswith(f"{block}.") and name not in inside]
            forgotten += [name for name in outside if not any(name.startswith(f"{other}.") for other in inside)]
    return tuple(forgotten)
