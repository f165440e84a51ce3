"""Which token each row of an expert's tensors is, told from how the layer routes, and checked.

An expert sees rows [n, channels] of the tokens routed to it. There are three ways in which models call their experts:
the container of the experts is given the indices of the chosen experts (transformers, linearized); it is given every
token once for each expert, those not routed to it as zeros (Llama 4); or the container is never called and the layer
picks rows by itself (remote code), in whatever order: then rows are found by their exact content.

Linearized experts can be run on all tokens (`experts.on_all_tokens`): then each is given everything that its container
is given, and the rows that are routed to it are a part of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.errors import MeasurementError
from quantaudit.model.structure import Bank


@dataclass(frozen=True, slots=True)
class Routed:
    """Rows of an expert's tensors that hold a token. rows: int64 [k] into them, None for all of `count` rows.

    tokens: int64 [k], the tokens' indices in the flattened batch of `total` tokens.
    """

    rows: Tensor | None
    tokens: Tensor
    count: int
    total: int


@dataclass(slots=True)
class _State:
    """What is known about one bank during one call of its layer."""

    hidden: Tensor | None = None
    chosen: Tensor | None = None
    called: bool = False
    current: Routed | None = None
    everything: Routed | None = None


class Routing:
    """Follows the experts of a model while it runs; `of` tells about the expert that runs just now.

    all_tokens: whether linearized experts are run on all tokens.
    """

    def __init__(self, banks: Sequence[Bank], *, all_tokens: bool = False) -> None:
        self._banks = banks
        self._all_tokens = all_tokens
        self._states = {bank.path: _State() for bank in banks}

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[None]:
        """While this lasts, every call of an expert is seen."""
        with ExitStack() as stack:
            for bank in self._banks:
                state = self._states[bank.path]
                parent = model.get_submodule(bank.path.rpartition(".")[0])
                _attach(stack, parent, partial(_enter_layer, state))
                _attach(stack, model.get_submodule(bank.path), partial(_enter_bank, state))
                enter = _enter_expert_on_all if self._all_tokens and bank.linearized else _enter_expert
                for index, path in enumerate(bank.experts):
                    _attach(stack, model.get_submodule(path), partial(enter, state, bank, index))
            yield

    def of(self, bank: str, *, all_tokens: bool = False) -> Routed:
        """Rows of the expert of this bank that was called last: those routed to it, or all that hold a token.

        Raises MeasurementError where none was called.
        """
        state = self._states[bank]
        current = state.everything if all_tokens else state.current
        if current is None:
            raise MeasurementError("a Linear of an expert ran outside its expert", where=bank)
        return current


def _attach(stack: ExitStack, module: nn.Module, enter: Callable[[list[Tensor]], None]) -> None:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter([value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)])

    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)


def _enter_layer(state: _State, tensors: list[Tensor]) -> None:
    hidden = tensors[0]
    state.hidden = hidden.reshape(-1, hidden.shape[-1])
    state.chosen, state.called, state.current, state.everything = None, False, None, None


def _enter_bank(state: _State, tensors: list[Tensor]) -> None:
    state.called = True
    state.chosen = next((x for x in tensors if not x.is_floating_point() and x.ndim == 2), None)


def _enter_expert(state: _State, bank: Bank, index: int, tensors: list[Tensor]) -> None:
    if state.hidden is None:
        raise MeasurementError("an expert ran outside its layer", where=bank.path)
    x, total = tensors[0].reshape(-1, tensors[0].shape[-1]), len(state.hidden)
    rows: Tensor | None = None
    if state.chosen is not None:
        tokens = routed_tokens(state.chosen, index)
    elif state.called:
        rows = tokens = x.any(-1).nonzero()[:, 0]
        if len(x) != total:
            raise MeasurementError(f"an expert was given {len(x)} rows for {total} tokens", where=bank.path)
    else:
        tokens = match_rows(x, state.hidden, where=bank.path)
    if rows is None and len(tokens) != len(x):
        raise MeasurementError(f"an expert was given {len(x)} rows, {len(tokens)} are routed to it", where=bank.path)
    state.current = Routed(rows, tokens, len(x), total)


def _enter_expert_on_all(state: _State, bank: Bank, index: int, tensors: list[Tensor]) -> None:
    if state.hidden is None:
        raise MeasurementError("an expert ran outside its layer", where=bank.path)
    x, total = tensors[0].reshape(-1, tensors[0].shape[-1]), len(state.hidden)
    if state.chosen is not None:
        tokens = routed_tokens(state.chosen, index)
        mine, every = Routed(tokens, tokens, len(x), total), Routed(None, torch.arange(total), len(x), total)
        expected = total
    else:
        # One copy of the tokens for each expert, its own at its index; rows of zeros are tokens routed to others.
        rows = x.any(-1).nonzero()[:, 0]
        own = rows[rows // total == index]
        mine, every = Routed(own, own % total, len(x), total), Routed(rows, rows % total, len(x), total)
        expected = total * len(bank.experts)
    if len(x) != expected:
        raise MeasurementError(f"an expert was given {len(x)} rows for {total} tokens", where=bank.path)
    state.current, state.everything = mine, every


def routed_tokens(chosen: Tensor, expert: int) -> Tensor:
    """Tokens routed to an expert, in the order of the linearized experts: by rank of the choice, then by token.

    chosen: int [tokens, k], the experts of each token. Returns int64 [routed].
    """
    return chosen.T.eq(expert).nonzero()[:, 1]


def match_rows(x: Tensor, given: Tensor, *, where: str) -> Tensor:
    """For every row of x the row of `given` with the same bits; equal rows are told apart by their order.

    x: [n, channels]; given: [tokens, channels]. Returns int64 [n]. Raises MeasurementError where a row is in none.
    """
    wanted, offered = _hash(x), _hash(given)
    sorted_wanted, order_wanted = wanted.sort(stable=True)
    sorted_offered, order_offered = offered.sort(stable=True)
    occurrence = torch.arange(len(x), device=x.device) - torch.searchsorted(sorted_wanted, sorted_wanted)
    place = torch.searchsorted(sorted_offered, sorted_wanted) + occurrence
    tokens = torch.empty_like(order_wanted)
    tokens[order_wanted] = order_offered[place.clamp(max=max(len(given) - 1, 0))] if len(x) else order_wanted
    different = torch.unique(tokens)
    if not torch.equal(_bits(given[tokens]), _bits(x)) or len(different) != len(x):
        raise MeasurementError("an expert was given rows that are not its layer's tokens", where=where)
    return tokens


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


def _hash(x: Tensor) -> Tensor:
    """int64 [rows], equal for rows of equal bits."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, (_bits(x[:1]).shape[-1],), generator=generator)
    return (_bits(x).long() * factors.to(x.device)).sum(-1)
