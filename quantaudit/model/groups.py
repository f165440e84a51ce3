"""Fused groups: the Linears that serving engines run as one and that must share a scheme."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from quantaudit.model.engine_units import FUSED_LINEARS, fuse
from quantaudit.model.structure import ExpertList, join, linears

FUSED = {row.name: row.members for row in reversed(FUSED_LINEARS) if row.model_types is None}
"""Linears that serving engines run as one, whatever the model: they read one tensor and share a scheme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A fused group. name: `layers.7.mlp.gate_up_proj`; projection: `gate_up_proj`; members: full module paths.

    experts: for a projection of routed experts, expert by expert the members that read that expert's tokens, and
    expert_list: those experts.
    """

    name: str
    projection: str
    layer: int | None
    members: tuple[str, ...]
    experts: tuple[tuple[str, ...], ...] = ()
    expert_list: ExpertList | None = None

    @property
    def reads_tokens(self) -> bool:
        """Whether routed experts of llm-compressor's making read their layer's tokens here, not what they made of them.

        Every token is routed to some expert, so that their inputs together are all tokens.
        """
        return self.expert_list is not None and self.expert_list.linearized and self.projection != "down_proj"

    @property
    def site(self) -> str:
        """Name of the tensor that the members read."""
        return f"{self.name}.input"


def layer_groups(layer: nn.Module, block: str, index: int, expert_lists: Sequence[ExpertList]) -> list[Group]:
    """Fused groups of one decoder layer at path `block`, in definition order."""
    inside = {path for expert_list in expert_lists for path in expert_list.experts}
    outside = [name for name in linears(layer) if not _below(f"{block}.{name}", inside)]
    groups = [
        Group(
            name=f"layers.{index}.{join(parent, projection)}",
            projection=projection,
            layer=index,
            members=tuple(f"{block}.{join(parent, leaf)}" for leaf in leaves),
        )
        for parent, projection, leaves in fuse(outside)
    ]
    return groups + [
        group for expert_list in expert_lists for group in _expert_groups(layer, block, index, expert_list)
    ]


def outer_groups(model: nn.Module, covered: set[str], head: str | None) -> Iterator[Group]:
    """Linears outside the decoder layers, the output embedding (at path `head`) under the name `lm_head`."""
    for name in linears(model):
        if name not in covered:
            projection = "lm_head" if name == head else name
            yield Group(name=projection, projection=projection, layer=None, members=(name,))


def _expert_groups(layer: nn.Module, block: str, index: int, expert_list: ExpertList) -> Iterator[Group]:
    """One group for each projection, over all experts of the layer."""
    first = layer.get_submodule(expert_list.experts[0].removeprefix(f"{block}."))
    name = expert_list.path.removeprefix(f"{block}.")
    for parent, projection, leaves in fuse(list(linears(first))):
        experts = tuple(tuple(f"{path}.{join(parent, leaf)}" for leaf in leaves) for path in expert_list.experts)
        yield Group(
            name=f"layers.{index}.{name}.{join(parent, projection)}",
            projection=projection,
            layer=index,
            members=tuple(member for members in experts for member in members),
            experts=experts,
            expert_list=expert_list,
        )


def _below(path: str, roots: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:end]) in roots for end in range(1, len(parts)))
