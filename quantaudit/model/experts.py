"""Experts as Linears of their own, as llm-compressor's `oneshot` makes them before it quantizes.

transformers keeps the experts of a layer as stacked 3-D parameters, which hooks and recipe targets on Linears pass by.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

NOTE = "experts of {} layers were split into Linears by llm-compressor's linearization, as `oneshot` does"


def linearize(model: nn.Module) -> list[str]:
    """Replace stacked experts by lists of experts made of Linears, in place, on any device; returns notes for a card.

    Experts of a layout that llm-compressor does not know stay as they are, to be listed as unmeasured.
    """
    stacked = [(path, module) for path, module in model.named_modules() if _stacked(module)]
    if not stacked:
        return []  # llm-compressor takes seconds to import

    split = 0
    with _no_garbage_collection():
        from llmcompressor.modeling.moe.helpers import FusedExpertsProtocol
        from llmcompressor.modeling.moe.linear_experts import LinearExperts2D

        for path, module in stacked:
            # The registry first: it answers at once, the protocol parses the source of the class.
            if LinearExperts2D.get_registration(type(module)) or isinstance(module, FusedExpertsProtocol):
                cls = LinearExperts2D.get_linear_experts_cls(type(module))
                model.set_submodule(path, _linear(cls, module, getattr(module, "config", model.config)))
                split += 1
    return [NOTE.format(split)] if split else []


def is_linearized(module: nn.Module) -> bool:
    """Whether these are experts that llm-compressor split, and so can run on all tokens."""
    # Where its module was never imported, nothing was split.
    toolkit: Any = sys.modules.get("llmcompressor.modeling.moe.linear_experts")
    return toolkit is not None and isinstance(module, toolkit.LinearExperts2D)


def extra_work(model: nn.Module) -> float | None:
    """How many times as much experts compute on all tokens as on those routed to them; None where they cannot."""
    counts = [int(module.num_experts) for module in model.modules() if is_linearized(module)]  # type: ignore[arg-type]
    if not counts:
        return None
    from llmcompressor.modeling.moe.helpers import MoEConfig

    config: Any = model.config
    chosen = int(MoEConfig.from_config(config.get_text_config()).num_experts_per_tok)
    return max(counts) / chosen


@contextmanager
def on_all_tokens() -> Iterator[None]:
    """While this lasts, linearized experts are given every token, as `oneshot` calibrates them.

    What they put out for tokens that are not routed to them is dropped: the model's own outputs stay what they are.
    """
    from llmcompressor.modeling.moe.context import moe_calibration_context

    with moe_calibration_context():
        yield


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Tens of thousands of modules come to be and stay: looking through them again and again takes most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _stacked(module: nn.Module) -> bool:
    return not isinstance(module, _ConvNd) and any(p.ndim == 3 for p in module.parameters(recurse=False))


def _linear(cls: Any, experts: nn.Module, config: Any) -> nn.Module:
    """The same experts as Linears, with the same weights in the same dtype."""
    weight = next(experts.parameters())
    if weight.is_meta:
        return _skeleton(cls, experts, config)
    made: nn.Module = cls.from_experts_module(experts, _outer(config))
    return made.eval().to(device=weight.device, dtype=weight.dtype)


def _skeleton(cls: Any, experts: Any, config: Any) -> nn.Module:
    """Linear experts without weights. Where tokens come sorted by expert (Llama 4), sizes are given one by one."""
    from llmcompressor.utils.dev import skip_weights_initialize

    text = config.get_text_config()
    with torch.device("meta"), skip_weights_initialize():
        sizes = (experts.num_experts, experts.hidden_size, experts.expert_dim) if hasattr(experts, "expert_dim") else ()
        made: nn.Module = cls(*sizes, text)
        return made


def _outer(config: Any) -> Any:
    """The configuration as llm-compressor looks into it: some classes ask a text model's for its `text_config`."""
    if hasattr(config, "text_config"):
        return config
    return _WithText(config)


class _WithText:
    """A text model's configuration that also answers to `text_config`."""

    def __init__(self, config: Any) -> None:
        self.text_config = config

    def __getattr__(self, name: str) -> Any:
        if name == "text_config":  # not yet, while it is being copied
            raise AttributeError(name)
        return getattr(self.text_config, name)
