"""Silence of other libraries: llm-compressor and transformers without their logs, bars and prints."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import Any

from quantaudit.common.printing.inert import inert

_PRINTED = 1 << 12
"""Bytes of what compiled code printed that are shown, at most."""


@contextmanager
def no_bars() -> Iterator[None]:
    """Within the context nobody's tqdm bars are drawn, those that are switched on by name among them."""
    from tqdm import std

    original = std.tqdm.__init__

    def switched_off(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **options | {"disable": True})

    std.tqdm.__init__ = switched_off
    try:
        yield
    finally:
        std.tqdm.__init__ = original


def switch_library_logs_off() -> None:
    """To be called before they are imported. llm-compressor logs to stdout, where results go; with it comes AutoRound,
    which shows what transformers warns of once, whatever the level of transformers' own log is.
    """
    os.environ.setdefault("LLM_COMPRESSOR_LOG_DISABLED", "true")
    os.environ.setdefault("AR_LOG_LEVEL", "ERROR")


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """llm-compressor's log stays off unless asked for, and its prints go to stderr."""
    switch_library_logs_off()
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def without_library_logs() -> Iterator[None]:
    """Within the context neither llm-compressor nor compressed_tensors logs; afterwards as llm-compressor has it."""
    from llmcompressor.logger import LOGGER_CONFIG
    from loguru import logger

    # GPTQ logs at a level of llm-compressor's own, which it leaves undefined where its log is off.
    with suppress(ValueError):
        logger.level("METRIC", no=38)
    for name in ("llmcompressor", "compressed_tensors"):
        logger.disable(name)
    try:
        with warnings.catch_warnings(), no_bars():
            # That offloaded experts are saved, and that a checkpoint has a quantization of its own: both are meant.
            warnings.filterwarnings("ignore", category=UserWarning, module="transformers")
            yield
    finally:
        logger.enable("compressed_tensors")
        if not LOGGER_CONFIG.disabled:
            logger.enable("llmcompressor")


@contextmanager
def compiled_prints_aside(*, shown: bool = True) -> Iterator[None]:
    """What compiled code prints to stdout within the context goes to stderr, inert, as its text may be a file's.

    The tokenizers library so prints options that it does not know, past Python's streams; HiGHS prints what concerns
    its developers alone (shown=False).
    """
    with ExitStack() as stack:
        aside: Any = None
        with suppress(OSError, ValueError, AttributeError):  # no stdout, a closed one, or no room
            sys.stdout.flush()
            stdout = os.dup(1)
            stack.callback(os.close, stdout)
            aside = stack.enter_context(tempfile.TemporaryFile())
        if aside is None:
            yield
            return
        os.dup2(aside.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(stdout, 1)
            aside.seek(0)
            text = aside.read(_PRINTED).decode("utf-8", "replace").strip()
            if text and shown:
                print(inert(text), file=sys.stderr)
