"""What a module is, by its structure and the words in its name, never from the name of the model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from quantaudit.errors import ModelError
from quantaudit.model.experts import is_linearized, routed_share

_ATTENTION = re.compile(r"attn|attention")
_MIXER = re.compile(r"mixer|mamba|ssm")
_MLP = re.compile(r"mlp|feed_forward|ffn|moe")
_NORM = re.compile(r"norm|ln_f")
FUSED_GATE = "gate_up_proj"
_ROUTER = re.compile(r"router|gate|wg")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertList:
    """The routed experts of one layer. path: their container; experts: each expert. Full module paths.

    linearized: whether llm-compressor split them, and so can run each of them on all tokens.
    """

    path: str
    experts: tuple[str, ...]
    linearized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A part of a decoder layer. name: what it is called in site names; child: its own name in the layer."""

    name: str
    kind: str
    child: str


def linears(module: nn.Module) -> dict[str, nn.Module]:
    """Every Linear below a module by relative path; transformers' Conv1D is one, with its weight transposed."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear | Conv1D)}


def token_shares(model: nn.Module, path: str) -> dict[str, tuple[nn.Module, float]]:
    """The same of a part of a model, by its path, each with the share of all tokens that it is given.

    All of them, but for routed experts that llm-compressor split, which are given as much each.
    """
    part = model.get_submodule(path)
    shares = {
        f"{name}.": routed_share(module, model.config) for name, module in part.named_modules() if is_linearized(module)
    }
    return {
        name: (linear, next((share for parent, share in shares.items() if name.startswith(parent)), 1.0))
        for name, linear in linears(part).items()
    }


def has_linears(module: nn.Module) -> bool:
    """Whether there is a Linear in a module, itself or below it."""
    return any(isinstance(child, nn.Linear | Conv1D) for child in module.modules())


def parent_of(path: str) -> str:
    """Path of the module that holds a module; empty for the root and its children."""
    return path.rpartition(".")[0]


def join(parent: str, leaf: str) -> str:
    """`parent.leaf`, or `leaf` alone below the root."""
    return f"{parent}.{leaf}" if parent else leaf


def decoder_layers(model: nn.Module, model_name: str | None = None) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers: in the text decoder, the ModuleList whose layers hold the most weights.

    model_name: what errors call it, its class by default. Raises ModelError where there is no such list.
    """
    root = text_decoder(model)
    names = {module: name for name, module in model.named_modules()}
    candidates: list[tuple[int, str, nn.ModuleList]] = []
    for module in root.modules():
        name = names[module]
        # A list within another one, such as a layer's experts, holds fewer weights.
        inner = any(name.startswith(f"{outer}.") for _, outer, _ in candidates)
        if isinstance(module, nn.ModuleList) and not inner and len(module) and all(map(has_linears, module)):
            candidates.append((sum(parameter.numel() for parameter in module.parameters()), name, module))
    if not candidates:
        raise ModelError(
            "no decoder layers found: no list of modules that hold Linears",
            where=model_name or type(model).__name__,
            hint="quantaudit audits decoder models with torch.nn.Linear projections",
        )
    _, name, module = max(candidates, key=lambda candidate: (candidate[0], -len(candidate[1])))
    return name, module


def context_length(text: Any) -> int | None:
    """Tokens that a model has positions for, by its text configuration; None without a limit, which XLNet calls −1."""
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def hidden_size(model: nn.Module) -> int:
    """Channels of the residual stream: by the configuration, or by the width of the embeddings where it has none."""
    config: Any = model.config
    named = getattr(config.get_text_config(), "hidden_size", None)
    if named is not None:
        return int(named)
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    embedding: Any = model.get_input_embeddings() if head is None else head  # type: ignore[operator]
    return int(embedding.weight.shape[1])


def text_decoder(model: nn.Module) -> nn.Module:
    """The language model of a multimodal one: what the model itself names as its decoder, if it has layers.

    Where it names none, or all of itself, it is the smallest part that holds both the token embedding and a list of
    layers. The model where there is no such part.
    """
    get = getattr(model, "get_decoder", None)
    named = get() if callable(get) else None
    if isinstance(named, nn.Module) and named is not model and _has_layers(named):
        return named
    embeddings = getattr(model, "get_input_embeddings", None)
    embedding = embeddings() if callable(embeddings) else None
    around = [m for m in model.modules() if embedding is not m and any(part is embedding for part in m.modules())]
    with_layers = [module for module in around if _has_layers(module)]
    return with_layers[-1] if with_layers else model


def _has_layers(module: nn.Module) -> bool:
    """Whether there is a list of modules that all hold Linears in a module, and not that list alone."""
    lists = (child for child in module.modules() if isinstance(child, nn.ModuleList) and child is not module)
    return any(len(child) and all(map(has_linears, child)) for child in lists)


def mixers(layer: nn.Module) -> list[Component]:
    """What mixes a layer's tokens: attention, linear attention (it has a convolution), a state-space mixer."""
    components = []
    for child, module in layer.named_children():
        if not (_ATTENTION.search(child) or _MIXER.search(child)) or not has_linears(module):
            continue
        recurrent = any(isinstance(part, _ConvNd) for part in module.modules())
        if _ATTENTION.search(child):
            name, kind = ("linear_attn", "linear_attention_output") if recurrent else ("self_attn", "attention_output")
            components.append(Component(name=name, kind=kind, child=child))
        elif recurrent:
            components.append(Component(name="mixer", kind="mixer_output", child=child))
    return components


def mlp(layer: nn.Module) -> Component | None:
    """The MLP of a layer, dense or of experts. Where a layer holds its two projections itself, the second of them."""
    for child, module in layer.named_children():
        if _MLP.search(child) and not _NORM.search(child) and any(p.ndim > 1 for p in module.parameters()):
            return Component(name="mlp", kind="mlp_output", child=child)
    projections = [child for child, module in layer.named_children() if isinstance(module, nn.Linear | Conv1D)]
    return Component(name="mlp", kind="mlp_output", child=projections[1]) if len(projections) == 2 else None


def is_gate(path: str, fused: Sequence[str]) -> bool:
    """Whether a Linear makes an MLP's gate, alone or (`gate_up_proj`) as the first half of its output.

    fused: the Linears of its group. Next to `w3`, `w1` is the gate.
    """
    stem, _, leaf = path.rpartition(".")
    return leaf in ("gate_proj", FUSED_GATE) or (leaf == "w1" and join(stem, "w3") in fused)


def output_module(component: nn.Module) -> str:
    """Relative path of the module whose output is a component's own contribution; empty for the component itself.

    A component that is given the residual adds it (BLOOM): there, its last Linear is the one.
    """
    adds_residual = "residual" in inspect.signature(component.forward).parameters
    return list(linears(component))[-1] if adds_residual else ""


def expert_lists(layer: nn.Module, path: str) -> list[ExpertList]:
    """Lists of experts in a layer at `path`: modules alike in their Linears, in a ModuleList that is called so."""
    lists = []
    for name, module in layer.named_modules():
        leaf = name.rpartition(".")[2]
        if not isinstance(module, nn.ModuleList) or "expert" not in leaf or "shared" in leaf:
            continue
        shapes = {child: _shapes(expert) for child, expert in module.named_children()}
        experts = [child for child, shape in shapes.items() if shape]
        if len(experts) > 1 and all(shapes[child] == shapes[experts[0]] for child in experts):
            container = f"{path}.{name}"
            paths = tuple(f"{container}.{child}" for child in experts)
            lists.append(ExpertList(path=container, experts=paths, linearized=is_linearized(module)))
    return lists


def router(model: nn.Module, expert_list: ExpertList) -> str | None:
    """Path of the module whose output holds the logits over a list of experts; None where it is not recognized.

    It is a sibling of their list and has one row of weights for each of them, itself or in a Linear of its own.
    """
    parent = expert_list.path.rpartition(".")[0]
    for name, sibling in model.get_submodule(parent).named_children():
        if not _ROUTER.search(name):
            continue
        for inner, module in sibling.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim == 2 and weight.shape[0] == len(expert_list.experts):
                return join(f"{parent}.{name}", inner) if inner else f"{parent}.{name}"
    return None


def final_norm(parent: nn.Module, layers: nn.ModuleList) -> nn.Module | None:
    """The norm behind the last layer: defined after the layers, or before them under a name that says `final`."""
    children = [(name, child) for name, child in parent.named_children() if child is layers or not has_linears(child)]
    split = [child is layers for _, child in children].index(True)
    after = [child for name, child in children[split + 1 :] if _NORM.search(name)]
    before = [child for name, child in children[:split] if _NORM.search(name) and "final" in name]
    return next(iter(after + before), None)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(linear.weight.shape) for name, linear in linears(module).items()}  # type: ignore[arg-type]
