"""From a model's modules to the tensors that are observed, and to the fused groups that are quantized together.

Only the structure is looked at, never a list of model names, and a skeleton on the meta device is enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

from quantaudit.errors import ModelError
from quantaudit.provenance import SiteInfo, Unmeasured

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Linears that serving engines run as one (vLLM's packed modules): they read one tensor and share a scheme."""

_ATTENTION = re.compile(r"attn|attention")
_MLP = re.compile(r"mlp|feed_forward|ffn")
_LAST = ("o_proj", "out_proj")
"""Attention's own output projection runs last, even where a class defines it first (Phi-3)."""
_NORM = re.compile(r"norm|ln_f")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A fused group. name: `layers.7.mlp.gate_up_proj`; projection: `gate_up_proj`; members: full module paths."""

    name: str
    projection: str
    layer: int | None
    members: tuple[str, ...]

    @property
    def site(self) -> str:
        """Name of the tensor that the members read."""
        return f"{self.name}.input"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is observed in a model. blocks: full paths of the decoder layers, in order."""

    blocks: tuple[str, ...]
    sites: tuple[SiteInfo, ...]
    groups: tuple[Group, ...]
    unmeasured: tuple[Unmeasured, ...] = field(default=())


def discover(model: nn.Module) -> Architecture:
    """Sites and groups of a decoder model, in the order of its forward pass.

    Raises ModelError where no decoder layers are found.
    """
    path, layers = decoder_layers(model)
    blocks = tuple(f"{path}.{i}" for i in range(len(layers)))
    groups = {i: list(_groups(layer, blocks[i], i)) for i, layer in enumerate(layers)}
    names = {module: name for name, module in model.named_modules()}
    sites: list[SiteInfo] = []
    missing: list[Unmeasured] = []

    embedding = model.get_input_embeddings()  # type: ignore[operator]
    _append(sites, missing, "embedding", "embedding", None, names.get(embedding), "output")
    for i, layer in enumerate(layers):
        _append_block(sites, missing, layer, blocks[i], i, groups[i])
    norm = _final_norm(model.get_submodule(path.rpartition(".")[0]), layers)
    _append(sites, missing, "final_norm", "final_norm", None, names.get(norm) if norm else None, "output")

    covered = {member for block in groups.values() for group in block for member in group.members}
    outer = list(_outer_groups(model, covered, names))
    sites += [_linear_input(group) for group in outer]
    every = [group for block in groups.values() for group in block] + outer
    missing += _other_weights(model, {member for group in every for member in group.members})
    return Architecture(blocks=blocks, sites=tuple(sites), groups=tuple(every), unmeasured=tuple(missing))


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers: the ModuleList whose layers hold the most Linear weights."""
    candidates = [
        (sum(linear.weight.numel() for linear in _linears(module).values()), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and all(_linears(child) for child in module) and len(module)
    ]
    if not candidates:
        raise ModelError(
            "no decoder layers found: no list of modules that hold Linears",
            where=type(model).__name__,
            hint="quantaudit audits decoder models with torch.nn.Linear projections",
        )
    _, name, module = max(candidates, key=lambda candidate: (candidate[0], -len(candidate[1])))
    return name, module


def _linears(module: nn.Module) -> dict[str, nn.Linear]:
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}


def _groups(layer: nn.Module, block: str, index: int) -> Iterator[Group]:
    """Fused groups of one decoder layer, in definition order."""
    linears = _linears(layer)
    done: set[str] = set()
    for name in linears:
        if name in done:
            continue
        parent, _, leaf = name.rpartition(".")
        projection, leaves = next(
            (
                (fused, members)
                for fused, members in FUSED.items()
                if leaf in members and all(_join(parent, member) in linears for member in members)
            ),
            (leaf, (leaf,)),
        )
        members = [_join(parent, member) for member in leaves]
        done.update(members)
        yield Group(
            name=f"layers.{index}.{_join(parent, projection)}",
            projection=projection,
            layer=index,
            members=tuple(f"{block}.{member}" for member in members),
        )


def _outer_groups(model: nn.Module, covered: set[str], names: dict[nn.Module, str]) -> Iterator[Group]:
    """Linears outside the decoder layers, the output embedding under the name `lm_head`."""
    head = names.get(model.get_output_embeddings())  # type: ignore[operator]
    for name in _linears(model):
        if name not in covered:
            projection = "lm_head" if name == head else name
            yield Group(name=projection, projection=projection, layer=None, members=(name,))


def _other_weights(model: nn.Module, covered: set[str]) -> Iterator[Unmeasured]:
    """Modules with weight matrices that are no Linears, such as fused experts, which hooks on Linears would pass by."""
    for name, module in model.named_modules():
        if name in covered or isinstance(module, nn.Embedding | _ConvNd):
            continue
        if any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False)):
            kind = type(module).__name__
            yield Unmeasured(module=name, reason=f"its weights are in a {kind}, which is not a Linear", weights=True)


def _append_block(
    sites: list[SiteInfo], missing: list[Unmeasured], layer: nn.Module, block: str, index: int, groups: list[Group]
) -> None:
    """Sites of one decoder layer in the order in which they come to be, so that the first broken one can be named."""
    prefix = f"layers.{index}"
    children = dict(layer.named_children())
    rest = list(groups)
    for name, kind, pattern in (("self_attn", "attention_output", _ATTENTION), ("mlp", "mlp_output", _MLP)):
        child = next((child for child in children if pattern.search(child) and _linears(children[child])), None)
        inside = [group for group in rest if child and group.members[0].startswith(f"{block}.{child}.")]
        rest = [group for group in rest if group not in inside]
        _append_groups(sites, sorted(inside, key=lambda group: group.projection in _LAST), prefix)
        _append(sites, missing, f"{prefix}.{name}.output", kind, index, f"{block}.{child}" if child else None, "output")
    _append_groups(sites, rest, prefix)
    _append(sites, missing, f"{prefix}.output", "residual", index, block, "output")


def _append_groups(sites: list[SiteInfo], groups: list[Group], prefix: str) -> None:
    for group in groups:
        sites.append(_linear_input(group))
        gate = next((member for member in group.members if member.rpartition(".")[2] == "gate_proj"), None)
        if gate:
            _append(sites, [], f"{prefix}.mlp.gate", "gate", group.layer, gate, "output")


def _append(
    sites: list[SiteInfo],
    missing: list[Unmeasured],
    name: str,
    kind: str,
    layer: int | None,
    module: str | None,
    tap: Literal["input", "output"],
) -> None:
    if module is None:
        missing.append(Unmeasured(module=name, reason=f"no module was recognised as {kind.replace('_', ' ')}"))
    else:
        sites.append(SiteInfo(name=name, kind=kind, layer=layer, module=module, tap=tap, members=[]))


def _linear_input(group: Group) -> SiteInfo:
    return SiteInfo(
        name=group.site,
        kind="linear_input",
        layer=group.layer,
        module=group.members[0],
        tap="input",
        members=list(group.members),
    )


def _final_norm(parent: nn.Module, layers: nn.ModuleList) -> nn.Module | None:
    children = list(parent.named_children())
    after = children[[child is layers for _, child in children].index(True) + 1 :]
    return next((child for name, child in after if _NORM.search(name)), None)


def _join(parent: str, leaf: str) -> str:
    return f"{parent}.{leaf}" if parent else leaf
