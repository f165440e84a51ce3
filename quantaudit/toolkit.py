"""llm-compressor without what it says while it works."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def toolkit_silent() -> Iterator[None]:
    """Within the context neither llm-compressor nor compressed_tensors logs on stderr."""
    from loguru import logger

    for name in ("llmcompressor", "compressed_tensors"):
        logger.disable(name)
    try:
        yield
    finally:
        for name in ("llmcompressor", "compressed_tensors"):
            logger.enable(name)
