"""Which implementation of attention runs, and with which mask: activations depend on both, and so do scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from quantaudit.model.forward.hooks import watch_inputs

if TYPE_CHECKING:
    from quantaudit.model.sites import Architecture


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Within the context attention runs eagerly, as it does while llm-compressor calibrates, whatever was loaded.

    Scales that are measured so are those that it saves, to the last bit of a 16-bit checkpoint.
    """
    config: Any = model.config
    configs = [config, *(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)]
    before = [part._attn_implementation for part in configs]
    # The outermost hands its choice down to the others, so it is first in both directions.
    config._attn_implementation = "eager"
    try:
        yield
    finally:
        for part, implementation in zip(configs, before, strict=True):
            part._attn_implementation = implementation


class GivenMasks:
    """Notes whether decoder layers with attention are given a mask: eager attention applies no other."""

    def __init__(self, model: nn.Module, architecture: Architecture) -> None:
        attention = {site.layer for site in architecture.sites if site.kind == "attention_output"}
        blocks = enumerate(architecture.blocks)
        self._paths = {model.get_submodule(path): path for index, path in blocks if index in attention}
        self._given: dict[str, bool] = {}

    def note(self, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """A module is about to run; modules that are no such layer, or name no mask, are passed over."""
        if module not in self._paths or "attention_mask" not in kwargs:
            return
        path, mask = self._paths[module], kwargs["attention_mask"]
        # On the meta device a pipeline only traces the model.
        if not getattr(mask, "is_meta", False):
            self._given[path] = self._given.get(path, False) or mask is not None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Notes every call of every layer while the context lasts."""
        with ExitStack() as stack:
            for module in self._paths:
                stack.enter_context(watch_inputs(module, lambda called, _args, kwargs: self.note(called, kwargs)))
            yield

    @property
    def absent(self) -> list[str]:
        """Layers that ran, where none of them was ever given a mask; empty where any was."""
        return list(self._given) if self._given and not any(self._given.values()) else []
