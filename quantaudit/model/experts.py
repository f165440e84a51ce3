"""Experts as Linears of their own, as llm-compressor's `oneshot` makes them before it quantizes.

transformers keeps the experts of a layer as stacked 3-D parameters, which hooks and recipe targets on Linears pass by.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from quantaudit.common.logs import stdout_to_stderr
from quantaudit.model.declared import check_experts

_TOKENS = 8
"""Random tokens on which experts are compared."""
_LARGEST = 3
"""Power of ten of the standard deviation of the last of them; that of the first is 1."""
NOTE = "experts of {} layers were split into Linears by llm-compressor's linearization, as `oneshot` does"
LEFT = "experts of {} layers are not split into Linears: llm-compressor does not know their layout, or gets it wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linearization:
    """What became of a model's stacked experts.

    split: paths of those that are Linears now. left: how many are not. wrong: paths of those that `oneshot` by itself
    would replace by experts that compute something else, or fails to replace, whatever is made of them here.
    """

    split: list[str] = field(default_factory=list)
    left: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """For a card."""
        return [note.format(count) for note, count in ((NOTE, len(self.split)), (LEFT, self.left)) if count]


@dataclass(frozen=True, slots=True)
class ExpertClasses:
    """What is known of classes of stacked experts: whether Linears made of them return the same; and by `oneshot`."""

    right: dict[type, bool] = field(default_factory=dict)
    by_oneshot: dict[type, bool] = field(default_factory=dict)


def linearize(
    model: nn.Module, *, config: Any = None, classes: ExpertClasses | None = None, skip: Sequence[str] = ()
) -> Linearization:
    """Replace stacked experts by lists of experts made of Linears, in place, on any device.

    The first of each class is run on a small random input, and must return what the stacked ones do. Experts of a
    layout that llm-compressor does not know, or does not get right, stay unmodified, to be listed as unmeasured.
    config: the model's, where a part of it is given. classes: what is known already, and is added to. skip: paths of
    parts that are left alone.
    """
    apart = tuple(f"{path}." for path in skip)
    stacked = [
        (path, module)
        for path, module in model.named_modules()
        if _stacked(module) and not f"{path}.".startswith(apart)
    ]
    if not stacked:
        return Linearization()  # llm-compressor takes seconds to import
    check_experts(sum(len(next(module.parameters())) for _, module in stacked))

    left = 0
    classes = classes or ExpertClasses()
    right, by_oneshot = classes.right, classes.by_oneshot
    split: list[str] = []
    wrong: list[str] = []
    with _no_garbage_collection():
        stacked.reverse()
        while stacked:  # emptied on the way, so that what was replaced is freed
            path, module = stacked.pop()
            own, kind = getattr(module, "config", config or model.config), type(module)
            if kind not in by_oneshot:
                by_oneshot[kind] = split_rightly_by_oneshot(module, own)
            if not by_oneshot[kind]:
                wrong.append(path)
            replacement = _linear(module, own)
            if replacement is not None and kind not in right:
                right[kind] = same_outputs(module, replacement)
            if replacement is not None and right[kind]:
                model.set_submodule(path, replacement)
                split.append(path)
            else:
                left += "expert" in f"{path.rpartition('.')[2]} {kind.__name__}".lower()
    return Linearization(split=split, left=left, wrong=wrong)


def split_rightly_by_oneshot(stacked: nn.Module, config: Any) -> bool:
    """Whether `oneshot` leaves these experts alone, or replaces them by experts that return the same.

    config: the one that it would read. True for experts without values.
    """
    cls = _linear_class(stacked)
    if cls is None or next(stacked.parameters()).is_meta:
        return True
    try:
        replaced = _like(stacked, cls.from_experts_module(stacked, config))
        right = same_outputs(stacked, replaced)
        release(replaced)
    except Exception:  # of lists for numbers, names that it does not know, other shapes
        return False
    return right


def release(module: nn.Module) -> None:
    """Take the tensors away from a module that nobody uses any more.

    Experts that llm-compressor makes refer to themselves: their weights would stay until Python looks for such circles.
    """
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.clear()


def same_outputs(stacked: nn.Module, linear: nn.Module) -> bool:
    """Whether experts return the same as Linears of their own as they did stacked, for a few random tokens.

    Tokens are small to large, so that limits of an activation are reached. Each token's output is compared within what
    another order of the same products in its dtype can change; one that overflows is not. True for experts without
    values.
    """
    weight = next(stacked.parameters())
    if weight.is_meta:
        return True
    experts, parts = len(weight), inspect.signature(stacked.forward).parameters
    width = next(module.in_features for module in linear.modules() if isinstance(module, nn.Linear))
    generator = torch.Generator().manual_seed(0)
    tokens = experts if len(parts) == 1 else _TOKENS  # as many for each, where they come sorted by expert
    x = torch.randn(tokens, width, generator=generator) * torch.logspace(0, _LARGEST, tokens)[:, None]
    x = x.to(weight.device, weight.dtype)
    order = torch.rand(tokens, experts, generator=generator).argsort(-1)[:, : min(2, experts)].to(weight.device)
    shares = torch.full(order.shape, 0.5, device=weight.device, dtype=weight.dtype)
    given = (x, order, shares)[: len(parts)]
    try:
        with torch.no_grad():
            expected, actual = stacked(*given).float(), linear(*given).float()
    except Exception:  # whatever a forward of an unknown kind raises: it is not the same
        return False
    error, size = (actual - expected).abs().amax(-1), expected.abs().amax(-1)
    close = error <= 16 * torch.finfo(weight.dtype).eps * size
    return bool((close | ~size.isfinite()).all())


def is_linearized(module: nn.Module) -> bool:
    """Whether these are experts that llm-compressor split, and so can run on all tokens."""
    # Where its module was never imported, nothing was split.
    linear_experts: Any = sys.modules.get("llmcompressor.modeling.moe.linear_experts")
    return linear_experts is not None and isinstance(module, linear_experts.LinearExperts2D)


def has_stacked_experts(model: nn.Module) -> bool:
    """Whether a model keeps experts as stacked parameters, of which `oneshot` would make Linears."""
    return any(map(_stacked, model.modules()))


def extra_work(model: nn.Module) -> float | None:
    """How many times as much experts compute on all tokens as on those routed to them; None where they cannot."""
    counts = [int(module.num_experts) for module in model.modules() if is_linearized(module)]  # type: ignore[arg-type]
    if not counts:
        return None
    config: Any = model.config
    return max(counts) / _chosen(config.get_text_config())


def routed_share(experts: Any, config: Any) -> float:
    """Share of the tokens that each of some linearized experts is given, where all are given as many."""
    return min(1.0, _chosen(config.get_text_config()) / int(experts.num_experts))


def _chosen(config: Any) -> int:
    """Experts that each token is sent to; of the first layer, where a configuration lists them."""
    names = ("top_k_experts", "num_experts_per_tok", "moe_topk", "moe_k")
    chosen = next((value for name in names if (value := getattr(config, name, None)) is not None), 1)
    return int(chosen if isinstance(chosen, int) else chosen[0])


@contextmanager
def calibrate_all_experts() -> Iterator[None]:
    """While this lasts, linearized experts are given every token, as `oneshot` calibrates them.

    Their outputs for tokens that are not routed to them are dropped: the model's own outputs stay what they are.
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


def _linear_class(experts: nn.Module) -> Any | None:
    """The class by which `oneshot` replaces these experts; None where it leaves them alone."""
    with stdout_to_stderr():
        from llmcompressor.modeling.moe.helpers import FusedExpertsProtocol
        from llmcompressor.modeling.moe.linear_experts import LinearExperts2D

    # The registry first: it answers at once, the protocol parses the source of the class.
    if not LinearExperts2D.get_registration(type(experts)) and not isinstance(experts, FusedExpertsProtocol):
        return None
    return LinearExperts2D.get_linear_experts_cls(type(experts))


def _linear(experts: nn.Module, config: Any) -> nn.Module | None:
    """The same experts as Linears, with the same weights in the same dtype; None where llm-compressor cannot.

    Where it stumbles over the configuration, it is given one with the sizes that these experts have.
    """
    cls = _linear_class(experts)
    if cls is None:
        return None
    weight = next(experts.parameters())
    for view in (config, _OfOneLayer(config.get_text_config(), experts)):
        with contextlib.suppress(Exception):  # of lists for numbers, names that it does not know, other shapes
            replacement = (
                _skeleton(cls, experts, view) if weight.is_meta else cls.from_experts_module(experts, _outer(view))
            )
            for name, value in vars(experts).items():
                if not name.startswith("_") and not hasattr(replacement, name):
                    setattr(replacement, name, value)  # such as a limit that its activation is to keep
            return replacement if weight.is_meta else _like(experts, replacement)
    return None


def _like(stacked: nn.Module, linear: nn.Module) -> nn.Module:
    """Linear experts on the device and in the dtype of the stacked ones, for inference.

    Without the offloading that llm-compressor gives them: it would keep their weights where they are, whatever device
    the model is moved to, and cannot leave values out.
    """
    from compressed_tensors.offload import remove_dispatch

    remove_dispatch(linear)
    weight = next(stacked.parameters())
    return linear.eval().to(device=weight.device, dtype=weight.dtype)


def _skeleton(cls: Any, experts: Any, config: Any) -> nn.Module:
    """Linear experts without weights. Where tokens come sorted by expert (Llama 4), sizes are given one by one."""
    from llmcompressor.utils.dev import skip_weights_initialize

    with torch.device("meta"), skip_weights_initialize():
        sizes = (experts.num_experts, experts.hidden_size, experts.expert_dim) if hasattr(experts, "expert_dim") else ()
        skeleton: nn.Module = cls(*sizes, config.get_text_config())
        return skeleton


class _OfOneLayer:
    """A text model's configuration with the sizes of one layer's experts, where it lists one size for each layer."""

    def __init__(self, config: Any, experts: Any) -> None:
        down = experts.down_proj  # [experts, hidden, intermediate], or its last axes swapped
        hidden, intermediate = down.shape[1:] if not getattr(experts, "is_transposed", False) else down.shape[:0:-1]
        self._config = config
        self.num_local_experts = len(down)
        self.moe_latent_size = self.hidden_size = hidden
        self.moe_intermediate_size = intermediate
        self.top_k_experts = _chosen(config)

    def get_text_config(self) -> _OfOneLayer:
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "text_config":  # not yet, while it is being copied; none of its own
            raise AttributeError(name)
        return getattr(self._config, name)


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
