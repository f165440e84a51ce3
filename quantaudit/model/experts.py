"""Experts as Linears of their own, as llm-compressor's `oneshot` makes them before it quantizes.

transformers keeps the experts of a layer as stacked 3-D parameters, which hooks and recipe targets on Linears pass by.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

NOTE = "experts of {} layers were split into Linears by llm-compressor's linearization, as `oneshot` does"


def linearize(model: nn.Module) -> list[str]:
    """Replace stacked experts by lists of experts made of Linears, in place, on any device; returns notes for a card.

    Experts of a layout that llm-compressor does not know stay as they are, to be listed as unmeasured.
    """
    if not any(_stacked(module) for module in model.modules()):
        return []  # llm-compressor takes seconds to import
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

    found = get_non_linearized_moes(model)
    for path, module in found:
        cls = LinearExperts2D.get_linear_experts_cls(type(module))
        weight = next(module.parameters())
        config = getattr(module, "config", model.config)
        made = _skeleton(cls, module, config) if weight.is_meta else cls.from_experts_module(module, _outer(config))
        model.set_submodule(path, made.to(device=weight.device, dtype=weight.dtype).eval())
    return [NOTE.format(len(found))] if found else []


def _stacked(module: nn.Module) -> bool:
    return not isinstance(module, _ConvNd) and any(p.ndim == 3 for p in module.parameters(recurse=False))


def _skeleton(cls: Any, experts: Any, config: Any) -> Any:
    """Linear experts without weights. Where tokens come sorted by expert (Llama 4), sizes are given one by one."""
    text = config.get_text_config()
    with torch.device("meta"):
        if hasattr(experts, "expert_dim"):
            return cls(experts.num_experts, experts.hidden_size, experts.expert_dim, text)
        return cls(text)


def _outer(config: Any) -> Any:
    """The configuration as llm-compressor looks into it: some classes ask a text model's for its `text_config`."""
    if hasattr(config, "text_config"):
        return config
    return _WithText(config)


class _WithText(SimpleNamespace):
    """A text model's configuration that also answers to `text_config`."""

    def __init__(self, config: Any) -> None:
        super().__init__(text_config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.text_config, name)
