"""Batches that run side by side compute what they compute alone, in the order of blocks, and end together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from greenlet import GreenletExit
from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.model.blockwise.input_store import InputStore, Room
from quantaudit.model.blockwise.lockstep import Watch, run_in_lockstep
from tests.builders import hooks

PLACE: ContextVar[str] = ContextVar("PLACE", default="nowhere")
BLOCKS = ("blocks.0", "blocks.1", "blocks.2")


class Model(nn.Module):
    """Three blocks. around: a context that the model's own code runs them in; order: in which it calls them."""

    def __init__(self, around: Callable[[], Any] | None = None, order: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.outside = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.around, self.order = around, order

    def forward(self, x: Tensor) -> Tensor:
        x = self.outside(x)
        if self.around is None:
            return self._through(x)
        with self.around():
            return self._through(x)

    def _through(self, x: Tensor) -> Tensor:
        for index in self.order:
            x = self.blocks[index](x)
        return x


def inputs(count: int = 4) -> list[Tensor]:
    return [torch.randn(n + 1, 8, generator=torch.Generator().manual_seed(n)) for n in range(count)]


def lockstep(model: nn.Module, run: Callable[[int], Any], count: int = 4, **options: Any) -> None:
    with InputStore(model, Room(device=1 << 30)) as store:
        run_in_lockstep(model, BLOCKS, range(count), run, store=store, **options)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (0, 0, 1), (1,), ()], ids=str)
def test_results_are_those_of_plain_calls_in_whatever_order_blocks_are_called(order: tuple[int, ...]) -> None:
    model, given, got = Model(order=order), inputs(), {}

    def run(number: int) -> None:
        got[number] = model(given[number])

    lockstep(model, run)
    assert list(got) == [0, 1, 2, 3]
    assert all(torch.equal(got[n], model(x)) for n, x in enumerate(given))
    assert hooks(model) == 0


def test_every_batch_is_through_a_block_before_the_next_block_begins() -> None:
    model, given, events = Model(), inputs(3), []
    watch = Watch(
        turn=lambda batch: events.append(f"{batch}"),
        passed=lambda batch, done, of: events.append(f"{batch}: {done}/{of}"),
        left=lambda block: events.append(f"left {block}"),
    )
    lockstep(model, lambda n: model(given[n]), 3, watch=watch)
    assert events[:3] == ["0", "1", "2"]
    assert events[3:] == [
        event
        for block in range(3)
        for event in (*(e for n in range(3) for e in (f"{n}", f"{n}: {block + 1}/3")), f"left {block}")
    ]


def test_it_can_end_early() -> None:
    model, given, left, ended = Model(), inputs(), [], []

    def run(number: int) -> None:
        try:
            model(given[number])
        except GreenletExit:
            ended.append(number)
            raise

    lockstep(model, run, watch=Watch(left=left.append), only=2)
    assert left == [0, 1]
    assert sorted(ended) == [0, 1, 2, 3]
    assert hooks(model) == 0


def test_an_error_ends_all_batches_and_names_its_own() -> None:
    model, given, ended = Model(), inputs(), []

    def run(number: int) -> None:
        try:
            model(given[number] if number != 2 else given[number][:, :5])
        finally:
            ended.append(number)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        lockstep(model, run)
    assert caught.value.__notes__ == ["in batch 3"]
    assert sorted(ended) == [0, 1, 2]
    assert hooks(model) == 0


def test_what_fails_while_batches_end_does_not_hide_the_error() -> None:
    model, given = Model(), inputs()

    def run(number: int) -> None:
        try:
            model(given[number])
        except GreenletExit:
            raise ValueError("while it ended") from None
        if number == 1:
            raise KeyError("the cause")

    with pytest.raises(KeyError, match="the cause"):
        lockstep(model, run)


def test_context_variables_are_those_of_the_caller_and_each_batch_has_its_own() -> None:
    model, given, seen = Model(), inputs(), []

    def run(number: int) -> None:
        seen.append(PLACE.get())
        PLACE.set(f"batch {number}")
        model(given[number])
        seen.append(PLACE.get())

    token = PLACE.set("the caller")
    try:
        lockstep(model, run)
        assert seen == ["the caller"] * 4 + [f"batch {n}" for n in range(4)]
        assert PLACE.get() == "the caller"
    finally:
        PLACE.reset(token)


@pytest.mark.parametrize("around", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_a_batch_keeps_its_own_grad_mode_and_autocast(around: Callable[[], Any]) -> None:
    model, given, got = Model(around=around), inputs(), {}
    plain = Model()

    def run(number: int) -> None:
        chosen = model if number % 2 else plain
        got[number] = chosen(given[number])
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")

    with torch.no_grad():
        with InputStore(model, Room(device=1 << 30)) as store:
            both = nn.ModuleList([model, plain])
            paths = [f"{which}.{block}" for block in BLOCKS for which in (0, 1)]
            run_in_lockstep(both, paths, range(4), run, store=store)
        for number, x in enumerate(given):
            expected = (model if number % 2 else plain)(x)
            assert torch.equal(got[number], expected)
            assert got[number].requires_grad == expected.requires_grad
        assert not torch.is_grad_enabled()


def test_a_mode_of_pytorch_around_the_blocks_is_refused() -> None:
    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    model, given = Model(around=Mode), inputs()
    with pytest.raises(MeasurementError, match="mode of PyTorch around its decoder blocks"):
        lockstep(model, lambda n: model(given[n]))
    assert hooks(model) == 0


def test_calls_of_others_meanwhile_do_not_wait() -> None:
    model, given, other = Model(), inputs(), []
    watch = Watch(left=lambda _block: other.append(model(given[0])))
    lockstep(model, lambda n: model(given[n]), watch=watch)
    assert len(other) == 3


def test_batches_take_turns_in_an_order_that_is_given_and_each_in_a_context_of_its_own() -> None:
    model, given, seen = Model(), inputs(3), []
    inside: list[tuple[int, int | None]] = []

    @contextmanager
    def during(number: int, block: int | None) -> Iterator[None]:
        inside.append((number, block))
        yield
        inside.pop()

    def run(number: int) -> None:
        model(given[number])
        seen.append(inside[:])

    backwards = lambda number, block: -number if block == 1 else number  # noqa: E731
    turns: list[int] = []
    lockstep(model, run, 3, order=backwards, watch=Watch(during=during, turn=turns.append))
    assert turns == [0, 1, 2, 0, 1, 2, 2, 1, 0, 0, 1, 2]
    assert seen == [[(0, 2)], [(1, 2)], [(2, 2)]]
    assert inside == []
