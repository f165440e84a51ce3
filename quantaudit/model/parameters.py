"""Weights that are in no Linear: those a recipe could mean, those it cannot, and parameters that are no weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from quantaudit.model.structure import linears
from quantaudit.provenance import Unmeasured

_EXPERTS = re.compile(r"expert", re.IGNORECASE)
_UNQUANTIZED = re.compile(r"router|gate$|gating|norm|embed|position|conv|statics", re.IGNORECASE)
"""Modules, by leaf or class, whose weights no engine quantizes: they pick, place or scale."""


def other_weights(model: nn.Module, covered: Collection[str]) -> Iterator[Unmeasured]:
    """Modules with weight matrices that hooks on Linears would pass by. covered: modules that are measured.

    Stacked experts, and Linears of a class of their own, could be what a recipe is meant for. A matrix that a mixer or
    a projector multiplies with by itself is listed, though no recipe reaches it. Biases, states, latents, positions,
    convolutions and routers are no weights that anybody quantizes.
    """
    every = set(linears(model)) | set(covered)
    for name, module in model.named_modules():
        if name in every or isinstance(module, nn.Embedding | _ConvNd):
            continue
        kind, leaf = type(module).__name__, name.rpartition(".")[2]
        matrices = _matrices(module)
        if not matrices or _unquantized(leaf, kind):
            continue
        if _EXPERTS.search(leaf) or _EXPERTS.search(kind) or "weight" in matrices:
            yield Unmeasured(
                module=name,
                reason=f"its weights are in a {kind}, which is not a Linear",
                weights=True,
                cause="not_linear",
            )
        elif any("weight" in parameter for parameter in matrices):
            yield Unmeasured(
                module=name, reason=f"matrices that a {kind} holds itself, which no recipe reaches", cause="not_linear"
            )


def _matrices(module: nn.Module) -> list[str]:
    """Parameters of a module itself that have two axes or more, not counting those of length one."""
    parameters = module.named_parameters(recurse=False)
    return [name for name, parameter in parameters if sum(length > 1 for length in parameter.shape) > 1]


def _unquantized(leaf: str, kind: str) -> bool:
    """Whether a module's own parameters are known by their use; experts never are."""
    words = (leaf, kind)
    return any(map(_UNQUANTIZED.search, words)) and not any(map(_EXPERTS.search, words))
