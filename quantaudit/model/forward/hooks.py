"""Hooks on modules as context managers: registered on entry, removed whatever happens inside.

A hook is called as PyTorch calls it, so that a context costs nothing per call: with (module, args, kwargs) before the
module runs, and with (module, args, kwargs, output) afterwards. Hooks of one module run in the order of registration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

from torch import nn

from quantaudit.common.timing import is_shown, log_duration

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
InputWatcher = Callable[[nn.Module, Arguments, Keywords], None]
OutputWatcher = Callable[[nn.Module, Arguments, Keywords, Any], None]
InputChange = Callable[[nn.Module, Arguments, Keywords], tuple[Arguments, Keywords] | None]
"""Returns the arguments that the module is called with instead; None leaves them unmodified."""
OutputChange = Callable[[nn.Module, Arguments, Keywords, Any], Any]
"""Returns the output that the caller is given instead; None leaves it unmodified."""


@contextmanager
def watch_inputs(module: nn.Module, watch: InputWatcher, *, first: bool = False) -> Iterator[None]:
    """Within the context, `watch` is called before the module runs. first: before hooks registered earlier."""
    handle = module.register_forward_pre_hook(watch, with_kwargs=True, prepend=first)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def watch_outputs(module: nn.Module, watch: OutputWatcher, *, always: bool = False) -> Iterator[None]:
    """Within the context, `watch` is called after the module ran. always: after a forward that raised as well."""
    handle = module.register_forward_hook(watch, with_kwargs=True, always_call=always)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replace_inputs(module: nn.Module, change: InputChange) -> Iterator[None]:
    """Within the context, the module is called with what `change` makes of its arguments."""
    handle = module.register_forward_pre_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replace_outputs(module: nn.Module, change: OutputChange) -> Iterator[None]:
    """Within the context, the module's callers are given what `change` makes of its output."""
    handle = module.register_forward_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def change_for_good(
    module: nn.Module, *, inputs: InputChange | None = None, outputs: OutputChange | None = None
) -> None:
    """Change a module's inputs or outputs for as long as it lives: part of how a checkpoint is loaded."""
    if inputs is not None:
        module.register_forward_pre_hook(inputs, with_kwargs=True)
    if outputs is not None:
        module.register_forward_hook(outputs, with_kwargs=True)


def time_first_call(model: nn.Module, stage: str) -> None:
    """Log how long the model's next call takes. Its hooks remove themselves; without anyone to read it, adds none."""
    if not is_shown():
        return
    hooks = ExitStack()
    starts: list[float] = []

    def before(_module: nn.Module, _args: Arguments, _kwargs: Keywords) -> None:
        starts.append(perf_counter())

    def after(_module: nn.Module, _args: Arguments, _kwargs: Keywords, _output: Any) -> None:
        hooks.close()
        log_duration(stage, starts[0])

    hooks.enter_context(watch_inputs(model, before))
    hooks.enter_context(watch_outputs(model, after))
