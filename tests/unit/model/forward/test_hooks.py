"""Hooks last as long as their context, whatever happens inside or while others are registered, and cost no wrapper."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import quantaudit
from quantaudit.common import timing
from quantaudit.model.forward.hooks import (
    change_for_good,
    replace_inputs,
    replace_outputs,
    time_first_call,
    watch_inputs,
    watch_outputs,
)


class Scaled(nn.Module):
    """x · factor, or an error where the factor is zero."""

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        if not factor:
            raise RuntimeError("broken forward")
        return x * factor


def nothing(*_: Any) -> None:
    """A hook that leaves all unmodified."""


CONTEXTS: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "watch_inputs": lambda module: watch_inputs(module, nothing),
    "watch_inputs, first": lambda module: watch_inputs(module, nothing, first=True),
    "watch_outputs": lambda module: watch_outputs(module, nothing),
    "watch_outputs, always": lambda module: watch_outputs(module, nothing, always=True),
    "replace_inputs": lambda module: replace_inputs(module, nothing),
    "replace_outputs": lambda module: replace_outputs(module, nothing),
}


def hooks(module: nn.Module) -> int:
    """How many hooks of any kind a module has, with what PyTorch notes about them."""
    names = [name for name in vars(module) if name.startswith("_forward") and "hook" in name]
    assert len(names) == 5  # hooks, pre-hooks, which of them take keywords, which are always called
    return sum(len(vars(module)[name]) for name in names)


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_hook_is_there_inside_and_gone_after(name: str) -> None:
    module = Scaled()
    with CONTEXTS[name](module):
        assert hooks(module) >= 2
        assert torch.equal(module(torch.ones(2)), torch.ones(2))
    assert hooks(module) == 0


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_hook_is_gone_after_an_exception_inside(name: str, error: type[BaseException]) -> None:
    module = Scaled()
    with pytest.raises(error), CONTEXTS[name](module):
        raise error
    assert hooks(module) == 0


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_hook_is_gone_after_an_exception_while_others_are_registered(name: str) -> None:
    model = nn.ModuleDict({"here": Scaled()})

    def register() -> None:
        with ExitStack() as stack:
            for path in ("here", "nowhere"):
                stack.enter_context(CONTEXTS[name](model.get_submodule(path)))

    with pytest.raises(AttributeError, match="nowhere"):
        register()
    assert hooks(model["here"]) == 0


@pytest.mark.parametrize("name", CONTEXTS)
def test_a_hook_is_gone_after_a_broken_forward(name: str) -> None:
    module = Scaled()
    with pytest.raises(RuntimeError, match="broken forward"), CONTEXTS[name](module):
        module(torch.ones(2), factor=0.0)
    assert hooks(module) == 0


def test_watchers_see_arguments_keywords_and_output_and_change_nothing() -> None:
    module, calls = Scaled(), []
    with (
        watch_inputs(module, lambda *call: calls.append(call)),
        watch_outputs(module, lambda *call: calls.append(call)),
    ):
        y = module(torch.ones(1), factor=3.0)
    (before, after) = calls
    assert before == (module, (torch.ones(1),), {"factor": 3.0})
    assert after[:3] == before
    assert after[3] is y


def test_replaced_inputs_and_outputs_take_effect_and_none_leaves_them() -> None:
    module, x = Scaled(), torch.ones(1)
    with replace_inputs(module, lambda _m, args, kwargs: ((args[0] + 1,), {**kwargs, "factor": 5.0})):
        assert module(x, factor=2.0).item() == 10.0
    with replace_outputs(module, lambda _m, args, kwargs, output: output + args[0] + kwargs["factor"]):
        assert module(x, factor=2.0).item() == 5.0
    with replace_inputs(module, nothing), replace_outputs(module, nothing):
        assert module(x, factor=2.0).item() == 2.0


def test_the_first_watcher_comes_before_those_registered_earlier() -> None:
    module, order = Scaled(), []
    with (
        watch_inputs(module, lambda *_: order.append("second")),
        watch_inputs(module, lambda *_: order.append("first"), first=True),
    ):
        module(torch.ones(1))
    assert order == ["first", "second"]


def test_only_an_output_watcher_that_is_always_called_sees_a_broken_forward() -> None:
    module, seen = Scaled(), []
    with (
        pytest.raises(RuntimeError, match="broken forward"),
        watch_outputs(module, lambda *_: seen.append("plain")),
        watch_outputs(module, lambda *_: seen.append("always"), always=True),
    ):
        module(torch.ones(1), factor=0.0)
    assert seen == ["always"]


def test_a_change_for_good_stays() -> None:
    module = Scaled()
    change_for_good(module, inputs=lambda _m, args, kwargs: ((2 * args[0],), kwargs))
    change_for_good(module, outputs=lambda _m, _a, _k, output: output + 1)
    assert module(torch.ones(1)).item() == 3.0


def test_every_hook_of_the_package_is_registered_here() -> None:
    package = Path(quantaudit.__file__).parent
    with_hooks = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"register_(forward|module_forward|full_backward)", path.read_text(encoding="utf-8"))
    ]
    assert with_hooks == ["model/forward/hooks.py"]


@pytest.fixture
def shown() -> Iterator[None]:
    timing.show_timings()
    yield
    timing.LOG.handlers.clear()
    timing.LOG.setLevel(0)
    timing.LOG.propagate = True


def test_only_the_first_call_is_timed_and_no_hook_remains(shown: None, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(2, 2)
    time_first_call(model, "the first forward pass")
    for _ in range(2):
        model(torch.randn(1, 2))
    assert capsys.readouterr().err.count("the first forward pass took") == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_nobody_reads_timings_and_no_hook_is_added() -> None:
    model = nn.Linear(2, 2)
    time_first_call(model, "the first forward pass")
    assert hooks(model) == 0
