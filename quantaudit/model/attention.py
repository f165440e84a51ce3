"""Which implementation of attention runs: activations differ between them by rounding, and so do scales."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

Attention = Literal["auto", "eager", "native"]


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
