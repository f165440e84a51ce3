"""The residual branch of a fused group: the chain of modules through which its change joins the residual stream.

A decoder block adds the outputs of its attention and its MLP to the residual stream, some behind one more norm. Up to
there a change is anything but linear in the error of the group; from there on it is one term of a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.common.ranks.team import alone
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.forward.capture import first_tensor, with_first_tensor, with_parts
from quantaudit.model.forward.hooks import replace_outputs
from quantaudit.model.sites import Architecture, Group
from quantaudit.simulate.replay.memo import Memo, record
from quantaudit.simulate.replay.recorded_calls import Call, record_calls


@dataclass(frozen=True, slots=True)
class ResidualBranch:
    """Children of a block that run one on the other's output (`chain`, by name). The first holds the group; all that
    the group changes goes through the last. An empty chain means the block itself.
    """

    chain: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Of the last one, inside the block; "" for the block itself."""
        return self.chain[-1] if self.chain else ""


ResidualBranches = Mapping[str, ResidualBranch]
"""By name of a group inside the blocks."""


@torch.no_grad()
def find_residual_branches(
    model: nn.Module, architecture: Architecture, sample: TokenizedSample
) -> dict[str, ResidualBranch]:
    """The residual branch of every group inside the blocks, as the model runs on one sample.

    Costs that sample's forward pass and some five runs of its blocks.
    """
    with alone():
        calls = record_calls(model, architecture.blocks, [sample])
    branches: dict[str, ResidualBranch] = {}
    for index, path in enumerate(architecture.blocks):
        inside = [group for group in architecture.groups if group.layer == index]
        branches |= branches_of_block(model.get_submodule(path), path, inside, calls[path])
        calls[path].clear()
    return branches


def branches_of_block(
    block: nn.Module, path: str, groups: Sequence[Group], calls: Sequence[Call]
) -> dict[str, ResidualBranch]:
    """The residual branch of every group in a block, from its calls for one sample. Costs some five runs of it."""
    if len(calls) != 1:  # skipped, or run several times
        return {group.name: ResidualBranch() for group in groups}
    clean, memo = record(block, calls[0].args, calls[0].kwargs)
    children = {group.name: _child(group, path) for group in groups}
    by_child = {child: _branch(block, calls[0], clean, memo, child) for child in set(children.values())}
    return {name: by_child[child] for name, child in children.items()}


def _child(group: Group, block: str) -> str | None:
    """The block's child that holds all members of a group; None where they are spread."""
    children = {member.removeprefix(f"{block}.").partition(".")[0] for member in group.members}
    return children.pop() if len(children) == 1 else None


def _branch(block: nn.Module, call: Call, clean: Tensor, memo: Memo, child: str | None) -> ResidualBranch:
    def same(changes: Mapping[str, Callable[[Any], Any]]) -> bool:
        """Whether the block's output is the clean one although children's outputs are changed."""
        with ExitStack() as stack:
            for path, change in changes.items():
                hook = lambda _m, _a, _k, output, change=change: change(output)  # noqa: E731
                stack.enter_context(replace_outputs(block.get_submodule(path), hook))
            return torch.equal(first_tensor(block(*call.args, **call.kwargs)), clean)

    if child is None or child not in memo.calls or not memo.calls[child].untouched or not same({child: _others_gone}):
        return ResidualBranch()
    chain = _chain(memo, child)
    while len(chain) > 1:
        last = memo.calls[chain[-1]].output
        if same({child: _moved, chain[-1]: partial(_instead, last)}):
            break
        chain.pop()
    return ResidualBranch(tuple(chain))


def _chain(memo: Memo, child: str) -> list[str]:
    """A child and those that run on nothing else than the output of the one before, as far as each is the only one."""
    chain = [child]
    while True:
        h = first_tensor(memo.calls[chain[-1]].output)
        after = [
            path
            for path, call in memo.calls.items()
            if "." not in path and path not in chain  # a dropout returns what it took
            if call.untouched and len(call.args) == 1 and call.args[0] is h and not call.kwargs
        ]
        if len(after) != 1:
            return chain
        chain += after


def _instead(clean: Any, _output: Any) -> Any:
    return clean


def _moved(output: Any) -> Any:
    return with_first_tensor(output, 2 * first_tensor(output) + 1)


def _others_gone(output: Any) -> Any:
    """Zeros for all tensors behind the first, such as logits of a router."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output
    gone = with_parts(output, [value * 0 if isinstance(value, Tensor) else value for value in parts])
    return with_first_tensor(gone, first_tensor(output))
