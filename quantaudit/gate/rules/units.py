"""QA408 to QA410: whether what engines run as one is quantized as one, and what they keep unquantized is left alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.gate.rules.phrases import some

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence
    from quantaudit.gate.group_assignment import GroupAssignment
    from quantaudit.gate.scheme_summary import SchemeSummary
    from quantaudit.gate.vllm_configuration import Unit


@rule(
    "QA408",
    "A fused group has mixed schemes",
    severity="error",
    why="Serving engines run these Linears as one, and all experts of a layer in one kernel, and refuse, or "
    "dequantize, a group whose members differ.",
    remedy="Treat the whole group alike: target or ignore all of its members, of experts all projections of every one.",
)
def mixed_groups(evidence: Evidence) -> Iterator[Hit]:
    """Members of a fused group, or experts of a layer, are quantized differently, or some of them not at all."""
    mixed = [group for group in evidence.assignments if group.mixed]
    by_projection: dict[str, list[GroupAssignment]] = {}
    for group in mixed:
        by_projection.setdefault(group.projection, []).append(group)
    for projection, groups in by_projection.items():
        group = groups[0]
        yield Hit(
            message=f"{counted(len(groups), f'{projection} group')} mixed, such as `{group.name}`: "
            f"{_sides(group.schemes)}",
            module=group.name,
            value=float(len(groups)),
        )
    reported = {member for group in mixed for member in group.members}
    units = [unit for unit in evidence.units if len(unit.members) > 1 and reported.isdisjoint(unit.members)]
    for kind, what in (("experts", "layer's experts"), ("fused", "fused group")):
        rows = [(unit, schemes) for unit in units if unit.kind == kind and len(schemes := _schemes(unit, evidence)) > 1]
        if rows:
            unit, schemes = rows[0]
            yield Hit(
                message=f"{_number(len(rows), what)} mixed, such as `{unit.name}`: {_sides(schemes)}",
                module=unit.members[0],
                value=float(len(rows)),
            )


def _number(number: int, what: str) -> str:
    """How many of something, where the plural of `layer's experts` is that of the layers."""
    if what == "layer's experts":
        return f"experts of {counted(number, 'layer')}"
    return counted(number, what)


def _schemes(unit: Unit, evidence: Evidence) -> dict[SchemeSummary | None, list[str]]:
    """How the members of a unit are quantized, None for left alone, and the members of each scheme."""
    by_scheme: dict[SchemeSummary | None, list[str]] = {}
    for member in unit.members:
        by_scheme.setdefault(evidence.schemes_of_linears.get(member), []).append(member)
    return by_scheme


def _sides(schemes: Mapping[SchemeSummary | None, Sequence[str]]) -> str:
    return "; ".join(
        f"{some(members, 2)} {'left alone' if scheme is None else scheme.title}" for scheme, members in schemes.items()
    )


@rule(
    "QA409",
    "The output embedding is quantized",
    severity="warning",
    why="Errors of lm_head go into every logit unattenuated, and it is a small share of the work; where it is tied to "
    "the input embedding, quantizing it unties them.",
    remedy="Add `lm_head` to `ignore`.",
)
def output_embedding(evidence: Evidence) -> Iterator[Hit]:
    """The Linear that makes logits is quantized."""
    for group in evidence.assignments:
        if group.projection == "lm_head":
            yield Hit(
                message=f"`{group.members[0]}` is quantized ({group.quantized[0].title})",
                module=group.members[0],
            )


@rule(
    "QA410",
    "A router is quantized",
    severity="error",
    why="Rounding a router's logits sends tokens to other experts, and serving engines keep routers unquantized.",
    remedy="Add the routers to `ignore`, such as `re:.*mlp.gate$` (the $ spares gate_proj).",
)
def routers(evidence: Evidence) -> Iterator[Hit]:
    """Linears whose outputs are router logits are quantized."""
    quantized = [
        site.module
        for site in evidence.card.sites
        if site.kind == "router_logits" and site.module in evidence.resolution.schemes
    ]
    if quantized:
        yield Hit(
            message=f"{counted(len(quantized), 'router')} quantized: {some(quantized)}",
            module=quantized[0],
            value=float(len(quantized)),
        )
