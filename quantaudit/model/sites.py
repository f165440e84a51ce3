"""From a model's modules to the tensors that are observed, and to the fused groups that are quantized together.

Only the structure is looked at, never a list of model names, and a skeleton on the meta device is enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

from quantaudit.model import structure
from quantaudit.model.groups import FUSED, Group, layer_groups, outer_groups
from quantaudit.model.parameters import other_weights
from quantaudit.model.structure import Component, ExpertList, decoder_layers, join
from quantaudit.provenance import SiteInfo, Unmeasured

__all__ = ["FUSED", "Architecture", "Group", "decoder_layers", "discover", "non_text_sites"]

_LAST = ("o_proj", "out_proj")
"""A token mixer's own output projection runs last, even where a class defines it first (Phi-3)."""
Tap = Literal["input", "output"]
ALL = "@all"
"""Ends the name of an expert's input over all tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is observed in a model.

    blocks: full paths of the decoder layers, in order; expert_lists: their routed experts.
    """

    blocks: tuple[str, ...]
    sites: tuple[SiteInfo, ...]
    groups: tuple[Group, ...]
    unmeasured: tuple[Unmeasured, ...] = field(default=())
    expert_lists: tuple[ExpertList, ...] = field(default=())


def discover(model: nn.Module, *, all_tokens: bool = False, model_name: str | None = None) -> Architecture:
    """Sites and groups of a decoder model, in the order of its forward pass.

    all_tokens: whether experts are run on all tokens, so that what each of them makes of all is observed too.
    model_name: what errors call it, its class by default. Raises ModelError where no decoder layers are found.
    """
    path, layers = decoder_layers(model, model_name)
    names = {module: name for name, module in model.named_modules()}
    listing = _Listing(all_tokens=all_tokens)
    listing.add("embedding", "embedding", None, names.get(model.get_input_embeddings()))  # type: ignore[operator]
    blocks, expert_lists, groups = [], [], []
    for index, layer in enumerate(layers):
        block = f"{path}.{index}"
        here = structure.expert_lists(layer, block)
        fused = layer_groups(layer, block, index, here)
        _Block(model, layer, block, index, here).list(listing, fused)
        blocks.append(block)
        expert_lists += here
        groups += fused
    norm = structure.final_norm(model.get_submodule(path.rpartition(".")[0]), layers)
    listing.add("final_norm", "final_norm", None, names.get(norm) if norm is not None else None)

    covered = {member for group in groups for member in group.members}
    outer = list(outer_groups(model, covered, names.get(model.get_output_embeddings())))  # type: ignore[operator]
    for group in outer:
        listing.add_inputs(group)
    groups += outer
    measured = {member for group in groups for member in group.members}
    measured |= {site.module for site in listing.sites if site.kind == "router_logits"}
    for name in _bare_projectors(model, measured):
        listing.add(f"{name}.output", "projector_output", None, name)
        measured.add(name)
    return Architecture(
        blocks=tuple(blocks),
        sites=tuple(listing.sites),
        groups=tuple(groups),
        unmeasured=(*listing.missing, *other_weights(model, measured)),
        expert_lists=tuple(expert_lists),
    )


def non_text_sites(model: nn.Module, sites: Sequence[SiteInfo]) -> frozenset[str]:
    """Names of the sites of a vision tower and its projector: all outside the text decoder but the output projection.

    Where images run, their rows are patches and not tokens. None in a model of text alone.
    """
    decoder = structure.text_decoder(model)
    inside = {id(module) for module in decoder.modules()} | {id(model.get_output_embeddings())}  # type: ignore[operator]
    return frozenset(site.name for site in sites if id(model.get_submodule(site.module)) not in inside)


@dataclass(slots=True)
class _Listing:
    """Sites so far, and parts of a model that were looked for in vain."""

    all_tokens: bool
    sites: list[SiteInfo] = field(default_factory=list)
    missing: list[Unmeasured] = field(default_factory=list)

    def add(
        self, name: str, kind: str, layer: int | None, module: str | None, modules: Sequence[str] = (), reason: str = ""
    ) -> None:
        """A module's output; where there is no module, a row that says so."""
        if module is None:
            reason = reason or f"no module was recognised as {kind.replace('_', ' ')}"
            self.missing.append(Unmeasured(module=name, reason=reason, cause="no_module"))
        else:
            self.sites.append(
                SiteInfo(
                    name=name, kind=kind, layer=layer, module=module, tap="output", members=[], modules=list(modules)
                )
            )

    def absent(self, name: str, reason: str) -> None:
        """A row that says that the model has no such part."""
        self.missing.append(Unmeasured(module=name, reason=reason, absent=True, cause="absent"))

    def add_inputs(self, group: Group) -> None:
        """What a group reads: one tensor, or one for each expert, merged; and, where observed, over all tokens."""
        stem = group.name.removesuffix(group.projection)
        parts = {
            f"{stem}{expert}.{group.projection}.input": (expert, members)
            for expert, members in zip(_expert_names(group), group.experts, strict=True)
        }
        everywhere = (
            self.all_tokens
            and group.expert_list is not None
            and group.expert_list.linearized
            and not group.reads_tokens
        )
        over_all = {name: f"{name}{ALL}" for name in (group.site, *parts) if everywhere}
        if group.reads_tokens:
            over_all = dict.fromkeys(parts, group.site)
        inputs = [_input(group.site, "linear_input", group, group.members, list(parts), over_all)]
        for name, (expert, members) in parts.items():
            inputs.append(_input(name, "expert_input", group, members, [], over_all, expert))
        self.sites += inputs
        if everywhere:
            self.sites += [_over_all(site) for site in inputs]


@dataclass(frozen=True, slots=True)
class _Block:
    """One decoder layer, its path and its index."""

    model: nn.Module
    layer: nn.Module
    path: str
    index: int
    expert_lists: list[ExpertList]

    def list(self, listing: _Listing, groups: Sequence[Group]) -> None:
        """Sites in the order in which they come to be, so that the first broken one can be named."""
        prefix = f"layers.{self.index}"
        rest = list(groups)
        mixers = structure.mixers(self.layer)
        mlp = structure.mlp(self.layer)
        before = len(listing.sites)
        for component in [*mixers, *([mlp] if mlp else [])]:
            inside = [group for group in rest if group.members[0].startswith(f"{self.path}.{component.child}.")]
            if component is mlp:
                if isinstance(self.layer.get_submodule(component.child), nn.Linear):
                    inside = rest
                self._routers(listing)
            rest = [group for group in rest if group not in inside]
            self._groups(listing, sorted(inside, key=lambda group: group.projection in _LAST), mlp)
            self._output(listing, component)
        if not mixers:
            listing.add(f"{prefix}.self_attn.output", "attention_output", self.index, None)
        if mlp is None and rest:
            listing.add(f"{prefix}.mlp.output", "mlp_output", self.index, None)
        elif mlp is None:
            listing.absent(f"{prefix}.mlp.output", "the layer has no MLP: all its Linears are in its token mixer")
        elif not any(site.kind == "gate" for site in listing.sites[before:]):
            self._no_gate(listing, mlp)
        self._groups(listing, rest, mlp)
        listing.add(f"{prefix}.output", "residual", self.index, self.path)

    def _output(self, listing: _Listing, component: Component) -> None:
        module = self.layer.get_submodule(component.child)
        tapped = join(f"{self.path}.{component.child}", structure.output_module(module)).removesuffix(".")
        listing.add(f"layers.{self.index}.{component.name}.output", component.kind, self.index, tapped)

    def _routers(self, listing: _Listing) -> None:
        for expert_list in self.expert_lists:
            name = f"layers.{self.index}.mlp.router"
            listing.add(name, "router_logits", self.index, structure.router(self.model, expert_list))

    def _no_gate(self, listing: _Listing, mlp: Component) -> None:
        name = f"layers.{self.index}.mlp.gate"
        if structure.has_linears(self.layer.get_submodule(mlp.child)):
            listing.absent(name, "the MLP has no gate")
        else:
            listing.add(name, "gate", self.index, None)

    def _groups(self, listing: _Listing, groups: Sequence[Group], mlp: Component | None) -> None:
        for group in groups:
            listing.add_inputs(group)
            gates = [member for member in group.members if structure.is_gate(member, group.members)]
            if not gates:
                continue
            where = group.name.removeprefix(f"layers.{self.index}.").rpartition(".")[0]
            if mlp is not None and where.split(".")[0] == mlp.child:
                where = join("mlp", where.partition(".")[2]).removesuffix(".")
            name = f"layers.{self.index}.{where}.gate"
            listing.add(name, "gate", self.index, gates[0], gates if group.experts else ())


def _input(
    name: str,
    kind: str,
    group: Group,
    members: Sequence[str],
    parts: list[str],
    over_all: Mapping[str, str],
    expert: str | None = None,
) -> SiteInfo:
    return SiteInfo(
        name=name,
        kind=kind,
        layer=group.layer,
        module=members[0],
        tap="input",
        members=list(members),
        parts=parts,
        expert=expert,
        all_tokens=over_all.get(name),
    )


def _over_all(site: SiteInfo) -> SiteInfo:
    """The same input over all tokens. Its Linears are members of the routed one."""
    parts = [f"{part}{ALL}" for part in site.parts]
    changes = {"name": f"{site.name}{ALL}", "kind": "expert_input_all", "parts": parts, "members": []}
    return site.model_copy(update={**changes, "all_tokens": None})


def _expert_names(group: Group) -> list[str]:
    """How each expert is called in its container."""
    if group.expert_list is None:
        return []
    return [path.removeprefix(f"{group.expert_list.path}.") for path in group.expert_list.experts]


def _bare_projectors(model: nn.Module, covered: set[str]) -> list[str]:
    """Projectors from images to text whose weight is a parameter of their own (Gemma 3), which no recipe quantizes."""
    other = [row.module for row in other_weights(model, covered)]
    inside = set(structure.text_decoder(model).modules())
    return [name for name in other if "projector" in name and model.get_submodule(name) not in inside]
