"""Which token each row of an expert's tensors is, from how the layer routes them, and checked.

An expert sees rows [n, channels] of the tokens routed to it. There are three ways in which models call their experts:
the container of the experts is given the indices of the chosen experts (transformers, linearized); it is given every
token once for each expert, those not routed to it as zeros (Llama 4); or the container is never called and the layer
picks rows by itself (remote code), in whatever order: then rows are found by their exact content.

Linearized experts can be run on all tokens (`experts.calibrate_all_experts`): then each is given everything that its
container is given, and the rows that are routed to it are a part of them.

All of it stays on the model's device. How many rows an expert is given is known from their shape; that these are as
many as were routed to it is noted on the device, and asked for once a batch, by `Routing.check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.model.forward.hooks import watch_inputs
from quantaudit.model.structure import ExpertList
from quantaudit.stats.labels import Chosen

NOT_ITS_TOKENS = "an expert was given rows that are not its layer's tokens"


@dataclass(frozen=True, slots=True)
class Routed:
    """Which rows of an expert's tensors, of `count`, are which of the `total` tokens of the flattened batch."""

    chosen: Chosen
    count: int
    total: int


@dataclass(slots=True)
class _State:
    """What is known about one list of experts while its layer is called. wrong: reason → bool, whether it ever held."""

    where: str
    hidden: Tensor | None = None
    chosen: Tensor | None = None
    lists: RoutedLists | None = None
    called: bool = False
    current: Routed | None = None
    everything: Routed | None = None
    wrong: dict[str, Tensor] = field(default_factory=dict)
    problem: MeasurementError | None = None

    def note(self, reason: str, wrong: Tensor) -> None:
        """Remember whether this went wrong, without asking for it."""
        before = self.wrong.get(reason)
        self.wrong[reason] = wrong if before is None else before | wrong


class Routing:
    """Follows the experts of a model while it runs; `of` describes the expert that runs just now.

    all_tokens: whether linearized experts are run on all tokens.
    """

    def __init__(self, expert_lists: Sequence[ExpertList], *, all_tokens: bool = False) -> None:
        self._expert_lists = expert_lists
        self._all_tokens = all_tokens
        self._states = {expert_list.path: _State(expert_list.path) for expert_list in expert_lists}

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """Within the context, every call of an expert is followed."""
        with ExitStack() as stack:
            for expert_list in self._expert_lists:
                state = self._states[expert_list.path]
                parent = model.get_submodule(expert_list.path.rpartition(".")[0])
                _attach(stack, parent, partial(_enter_layer, state))
                _attach(
                    stack, model.get_submodule(expert_list.path), partial(_enter_list, state, len(expert_list.experts))
                )
                enter = _enter_expert_on_all if self._all_tokens and expert_list.linearized else _enter_expert
                for index, path in enumerate(expert_list.experts):
                    _attach(
                        stack,
                        model.get_submodule(path),
                        partial(_try_enter, state, partial(enter, state, expert_list, index)),
                    )
            yield

    def of(self, path: str, *, all_tokens: bool = False) -> Routed:
        """Rows of the expert called last of the list at `path`: those routed to it, or all that hold a token.

        Raises MeasurementError where none was called, or its rows were not understood.
        """
        state = self._states[path]
        current = state.everything if all_tokens else state.current
        if current is None:
            raise state.problem or MeasurementError("a Linear of an expert ran outside its expert", where=path)
        return current

    def problems(self) -> dict[str, str]:
        """After a batch: lists whose experts were given other rows than were routed to them, and what these were."""
        noted = [
            (state.where, reason, wrong) for state in self._states.values() for reason, wrong in state.wrong.items()
        ]
        for state in self._states.values():
            state.wrong = {}
        if not noted:
            return {}
        happened = torch.stack([wrong for _, _, wrong in noted]).tolist()
        return {where: reason for (where, reason, _), wrong in zip(noted, happened, strict=True) if wrong}


def _try_enter(state: _State, enter: Callable[[list[Tensor]], None], tensors: list[Tensor]) -> None:
    """Whatever is not understood about an expert's rows is raised when they are asked for: the model runs on."""
    try:
        enter(tensors)
        state.problem = None
    except MeasurementError as error:
        state.current, state.everything, state.problem = None, None, error


def _attach(stack: ExitStack, module: nn.Module, enter: Callable[[list[Tensor]], None]) -> None:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])

    stack.enter_context(watch_inputs(module, hook))


def _enter_layer(state: _State, tensors: list[Tensor]) -> None:
    hidden = tensors[0]
    state.hidden = hidden.reshape(-1, hidden.shape[-1])
    state.chosen = state.lists = state.current = state.everything = None
    state.called = False


def _enter_list(state: _State, experts: int, tensors: list[Tensor]) -> None:
    state.called = True
    state.chosen = next((x for x in tensors if not x.is_floating_point() and x.ndim == 2), None)
    state.lists = None if state.chosen is None else RoutedLists.of(state.chosen, experts)


def _enter_expert(state: _State, expert_list: ExpertList, index: int, tensors: list[Tensor]) -> None:
    if state.hidden is None:
        raise MeasurementError("an expert ran outside its layer", where=expert_list.path)
    x, total = tensors[0].reshape(-1, tensors[0].shape[-1]), len(state.hidden)
    if state.lists is not None:
        tokens, wrong = state.lists.rows(index, len(x))
        state.note("an expert was given other rows than were routed to it", wrong)
        chosen = Chosen(tokens)
    elif state.called:
        if len(x) != total:
            raise MeasurementError(f"an expert was given {len(x)} rows for {total} tokens", where=expert_list.path)
        chosen = Chosen(None, x.any(-1))
    else:
        tokens, wrong = find_rows(x, state.hidden)
        state.note(NOT_ITS_TOKENS, wrong)
        chosen = Chosen(tokens)
    state.current = Routed(chosen, len(x), total)


def _enter_expert_on_all(state: _State, expert_list: ExpertList, index: int, tensors: list[Tensor]) -> None:
    if state.hidden is None:
        raise MeasurementError("an expert ran outside its layer", where=expert_list.path)
    x, total = tensors[0].reshape(-1, tensors[0].shape[-1]), len(state.hidden)
    if state.chosen is not None:
        mine, every = Chosen(None, (state.chosen == index).any(-1)), Chosen()
        expected = total
    else:
        # One copy of the tokens for each expert, its own at its index; rows of zeros are tokens routed to others.
        place = torch.arange(len(x), device=x.device)
        tokens, given = place % total, x.any(-1)
        mine, every = Chosen(tokens, given & (place // total == index)), Chosen(tokens, given)
        expected = total * len(expert_list.experts)
    if len(x) != expected:
        raise MeasurementError(f"an expert was given {len(x)} rows for {total} tokens", where=expert_list.path)
    state.current, state.everything = Routed(mine, len(x), total), Routed(every, len(x), total)


@dataclass(frozen=True, slots=True)
class RoutedLists:
    """Tokens routed to each expert, one expert after another, in the order of the linearized experts: by rank of the
    choice, then by token. tokens: int64 [choices]; starts, counts: int64 [experts + 1], the last for no expert.
    """

    tokens: Tensor
    starts: Tensor
    counts: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> RoutedLists:
        """The lists of a layer. chosen: int [tokens, k], experts by token; others than 0 … experts − 1 are none."""
        by_rank = chosen.T.reshape(-1).long()
        by_rank = torch.where((by_rank >= 0) & (by_rank < experts), by_rank, experts)
        counts = torch.zeros(experts + 1, dtype=torch.int64, device=chosen.device)
        counts.scatter_add_(0, by_rank, torch.ones_like(by_rank))
        tokens = by_rank.argsort(stable=True) % len(chosen) if len(chosen) else by_rank
        return cls(tokens, counts.cumsum(0) - counts, counts)

    def rows(self, expert: int, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` tokens of an expert's list, int64 [count], and whether it has more or fewer, bool."""
        place = self.starts[expert] + torch.arange(count, device=self.tokens.device)
        last = max(len(self.tokens) - 1, 0)
        return self.tokens.index_select(0, place.clamp(max=last)), self.counts[expert] != count


def find_rows(x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
    """For every row of x the row of `given` with the same bits, and whether a row of x is in none.

    x: [n, channels]; given: [tokens, channels]. Returns int64 [n] and a bool on the device, which nobody waits for
    here. Equal rows are distinguished by their order.
    """
    if not len(x) or not len(given):
        return torch.zeros(len(x), dtype=torch.int64, device=x.device), torch.tensor(len(x) > 0, device=x.device)
    queried, offered = _hash(x), _hash(given)
    sorted_queried, order_queried = queried.sort(stable=True)
    sorted_offered, order_offered = offered.sort(stable=True)
    occurrence = torch.arange(len(x), device=x.device) - torch.searchsorted(sorted_queried, sorted_queried)
    place = torch.searchsorted(sorted_offered, sorted_queried) + occurrence
    matched = order_offered.index_select(0, place.clamp(max=len(given) - 1))
    tokens = torch.empty_like(order_queried).scatter_(0, order_queried, matched)
    ordered = tokens.sort().values
    twice = (ordered[1:] == ordered[:-1]).any()
    return tokens, twice | (_bits(given.index_select(0, tokens)) != _bits(x)).any()


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


def _hash(x: Tensor) -> Tensor:
    """int64 [rows], equal for rows of equal bits."""
    bits = _bits(x)
    return (bits.long() * _factors(bits.shape[-1], x.device)).sum(-1)


@lru_cache(maxsize=8)
def _factors(width: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(1 << 62), 1 << 62, (width,), generator=generator).to(device)
