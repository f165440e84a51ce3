"""What a decoder block need not compute again when one of its groups changes: all that ran before that group.

A call of a module that ended before the group's first member began cannot depend on the group. Its output, recorded
from the clean run, stands for it in a replay; so does all of a component that returns a member's output unmodified.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from torch import Tensor, nn

from quantaudit.model.forward.capture import first_tensor
from quantaudit.model.forward.hooks import watch_inputs, watch_outputs
from quantaudit.simulate.patch_forward import replace_forward

MEMO_BYTES = 1 << 30
"""Recorded outputs of one block's modules kept at once; what exceeds it is computed again."""


@dataclass(slots=True)
class ModuleCall:
    """A module's call in a block's run. start, end: ticks of one clock for the whole run; end is −1 for a module that
    ran more than once. versions: of input and output at the call; different ones mean that the block wrote into one.
    """

    start: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    end: int = -1
    output: Any = None
    versions: tuple[int, int] = (-1, -1)

    @property
    def untouched(self) -> bool:
        """Whether the first tensors taken and returned are still what they were, the module having run once."""
        return self.end >= 0 and self.versions[1] >= 0 and self.versions == self.current_versions()

    @property
    def intact(self) -> bool:
        """Whether input and output are still what the module took and returned."""
        return self.untouched and _only_tensor(self.output) is not None

    def current_versions(self) -> tuple[int, int]:
        """Versions of the first tensor taken and of the first returned; −1 for none."""
        taken = next((x for x in (*self.args, *self.kwargs.values()) if isinstance(x, Tensor)), None)
        returned = self.output if isinstance(self.output, tuple) else (self.output,)
        first = next((x for x in returned if isinstance(x, Tensor)), None)
        return (-1 if taken is None else taken._version, -1 if first is None else first._version)

    @property
    def bytes(self) -> int:
        """Memory of what was taken and returned."""
        return sum(x.nbytes for x in (*self.args, *self.kwargs.values(), self.output) if isinstance(x, Tensor))


@dataclass(slots=True)
class Memo:
    """The calls of one clean run, by path inside the block. With an empty one all is computed again."""

    calls: dict[str, ModuleCall] = field(default_factory=dict)

    def prune(self, members: Sequence[Sequence[str]]) -> int:
        """Drop calls that no replay of these groups (members by path in the block) needs. Returns the bytes held."""
        needed = set[str]()
        for group in members:
            outer = self.pass_through(group)
            needed |= {*self.skippable(group), *filter(None, [outer]), *(self.calls.keys() & {*group})}
        self.calls = {path: call for path, call in self.calls.items() if path in needed}
        return sum(call.bytes for call in self.calls.values())

    def skippable(self, members: Sequence[str]) -> list[str]:
        """The outermost modules whose only call ended before the first of `members` began; none in `pass_through`."""
        first = min((self.calls[member].start for member in members if member in self.calls), default=math.inf)
        outer = self.pass_through(members)
        before = {
            path
            for path, call in self.calls.items()
            if call.end < first and call.intact and (outer is None or not path.startswith(f"{outer}."))
        }
        return [path for path in before if not any(parent in before for parent in _parents(path))]

    def pass_through(self, members: Sequence[str]) -> str | None:
        """The outermost module that returns the output of the only member unmodified; None where there is none."""
        call = self.calls.get(members[0]) if len(members) == 1 else None
        if call is None or not call.intact:
            return None
        outer = [path for path in _parents(members[0]) if path in self.calls and self.calls[path].intact]
        same = [path for path in outer if _only_tensor(self.calls[path].output) is _only_tensor(call.output)]
        return min(same, key=len, default=None)


def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Memo]:
    """Hidden states that an unmodified block returns, and the calls of the modules in it."""
    memo, clock = Memo(), count()
    with ExitStack() as stack:
        for path, module in block.named_modules():
            if path:
                before, after = _watch(path, memo.calls, clock)
                stack.enter_context(watch_inputs(module, before))
                stack.enter_context(watch_outputs(module, after))
        output = first_tensor(block(*args, **kwargs))
    return output, memo


@contextmanager
def remembered(block: nn.Module, memo: Memo, members: Sequence[str]) -> Iterator[None]:
    """Within the context, what ran before the members (by path inside the block) is not computed again."""
    with ExitStack() as stack:
        outer_path = memo.pass_through(members)
        for path in memo.skippable(members):
            output = memo.calls[path].output
            replace_forward(stack, block.get_submodule(path), lambda *_args, _output=output, **_kwargs: _output)
        if outer_path is not None:
            call, member = memo.calls[members[0]], block.get_submodule(members[0])
            outer = memo.calls[outer_path].output
            replace_forward(
                stack,
                block.get_submodule(outer_path),
                lambda *_args, **_kwargs: _with_tensor(outer, member(*call.args, **call.kwargs)),
            )
        yield


def _watch(
    path: str, calls: dict[str, ModuleCall], clock: Iterator[int]
) -> tuple[Callable[..., None], Callable[..., None]]:
    again = False

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal again
        again = path in calls
        if not again:
            calls[path] = ModuleCall(next(clock), args, kwargs)
            calls[path].versions = calls[path].current_versions()

    def after(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        call = calls[path]
        call.end, call.output = (-1, None) if again else (next(clock), output)
        call.versions = (call.versions[0], call.current_versions()[1])

    return before, after


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _only_tensor(output: Any) -> Tensor | None:
    """The tensor that a module returned, alone or as the only one of a flat tuple; None for anything else."""
    if isinstance(output, Tensor):
        return output
    if not isinstance(output, tuple) or any(not isinstance(value, Tensor | None) for value in output):
        return None
    tensors = [value for value in output if isinstance(value, Tensor)]
    return tensors[0] if len(tensors) == 1 else None


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its only tensor exchanged."""
    if isinstance(output, Tensor):
        return tensor
    return tuple(tensor if isinstance(value, Tensor) else value for value in output)
