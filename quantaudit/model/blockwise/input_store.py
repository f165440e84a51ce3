"""The arguments of decoder blocks while batches wait: on the device, then in main memory, then on disk, in a budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.common.outputs.scratch import scratch_folder
from quantaudit.errors import OutputError
from quantaudit.model.blockwise.memory import give_back

SMALLEST = 4096
"""Bytes below which a tensor stays where it is."""
TRIMMED = 1 << 25
"""Bytes that are moved, away or back, before the system is given back what has gone meanwhile: else that would stay
with the process, in pieces between others, and count as used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes of block arguments that may stay on the device of the model, and in main memory where that is another."""

    device: int
    host: int = 0


@dataclass(slots=True)
class _View:
    """A tensor that looks at the memory of another: how it does."""

    tensor: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass(slots=True)
class _Moved:
    """Memory that was moved away: the tensors that look at it, and where its bytes are, a copy or a file."""

    views: list[_View]
    device: torch.device
    copy: Tensor | None
    file: Path | None


@dataclass(slots=True)
class _Held:
    """What is known of a batch that waits. resident: bytes that stayed on the device, by key of their memory."""

    resident: dict[int, int] = field(default_factory=dict)
    moved: list[_Moved] = field(default_factory=list)


class InputStore:
    """Holds what batches pass to the block that they wait at.

    A tensor that is moved away is emptied in place, whoever refers to it, and filled again before its batch goes on.
    The batch that came last is moved first, as it is due last. Tensors of the model, of two batches at once, or whose
    memory somebody else looks at too, stay where they are.
    """

    def __init__(self, model: nn.Module, room: Room) -> None:
        self._room, self._model = room, model  # as long as it lives, nothing else has its memory
        self._device, self._host, self._files, self._moved = 0, 0, 0, 0
        tensors = (*model.parameters(), *model.buffers())
        self._own = {tensor.untyped_storage()._cdata for tensor in tensors if not tensor.is_meta}
        self._held: dict[int, _Held] = {}
        self._holders: dict[int, int] = {}
        self._stack = ExitStack()
        self._folder: Path | None = None
        self.written = 0
        """Bytes that were written to disk so far."""

    def __enter__(self) -> InputStore:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._held.clear()
        self._stack.close()

    def put(self, key: int, values: Any) -> None:
        """A batch waits with these arguments: nested tuples, lists, mappings, and dataclasses of tensors."""
        held = self._held[key] = _Held()
        for storage, tensors in _by_storage(values).items():
            size, shared = tensors[0].untyped_storage().nbytes(), storage in self._holders
            if not shared and self._device + size > self._room.device and self._movable(storage, tensors):
                held.moved.append(self._move(tensors))
                continue
            self._holders[storage] = self._holders.get(storage, 0) + 1
            held.resident[storage] = 0 if shared else size
            self._device += held.resident[storage]

    def take(self, key: int) -> None:
        """The batch goes on: its arguments are where they were."""
        held = self._held.pop(key)
        for moved in held.moved:
            self._bring(moved)
        for storage, size in held.resident.items():
            self._device -= size
            self._holders[storage] -= 1
            if not self._holders[storage]:
                del self._holders[storage]

    def _movable(self, storage: int, tensors: list[Tensor]) -> bool:
        """Whether nobody but these tensors refers to their memory."""
        first = tensors[0]
        if storage in self._own or first.untyped_storage().nbytes() < SMALLEST:
            return False
        if any(type(tensor) is not Tensor or tensor.requires_grad for tensor in tensors):
            return False
        memory = first.untyped_storage()
        return int(torch._C._storage_Use_Count(memory._cdata)) == len(tensors) + 1  # this handle

    def _move(self, tensors: list[Tensor]) -> _Moved:
        views = [_View(t, t.shape, t.stride(), int(t.storage_offset())) for t in tensors]
        memory = _bytes_of(tensors[0])
        moved = _Moved(views, tensors[0].device, None, None)
        if memory.device.type != "cpu" and self._host + memory.nbytes <= self._room.host:
            moved.copy = memory.cpu()
            self._host += memory.nbytes
        else:
            moved.file = self._write(memory.cpu())
        for view in views:
            view.tensor.data = torch.empty(0, dtype=view.tensor.dtype, device=moved.device)
        size = memory.nbytes
        del memory
        self._count(size)
        return moved

    def _bring(self, moved: _Moved) -> None:
        if moved.file is not None:
            memory = torch.empty(moved.file.stat().st_size, dtype=torch.uint8)
            with moved.file.open("rb") as file:
                file.readinto(memory.numpy().data)
            moved.file.unlink()
        else:
            assert moved.copy is not None
            memory = moved.copy
            self._host -= memory.nbytes
        self._count(memory.nbytes)
        storage = memory.to(moved.device).untyped_storage()
        for view in moved.views:
            empty = torch.empty(0, dtype=view.tensor.dtype, device=moved.device)
            view.tensor.data = empty.set_(storage, view.offset, view.size, view.stride)

    def _count(self, moved: int) -> None:
        self._moved += moved
        if self._moved >= TRIMMED:
            self._moved = 0
            give_back()

    def _write(self, memory: Tensor) -> Path:
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch_folder())
        self._files += 1
        path = self._folder / str(self._files)
        try:
            with path.open("wb") as file:
                file.write(memory.numpy().data)
        except OSError as error:
            raise OutputError(
                f"what waits between two blocks cannot be written: {error.strerror}",
                where=str(self._folder),
                hint="set TMPDIR to a folder with more room, or give more memory with --memory-budget",
            ) from error
        self.written += memory.nbytes
        return path


def _bytes_of(tensor: Tensor) -> Tensor:
    """All memory that a tensor looks at, uint8."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def _by_storage(values: Any) -> dict[int, list[Tensor]]:
    """Every tensor among values, once, by the memory that it looks at; with those that it is a view of."""
    tensors: dict[int, Tensor] = {}
    for tensor in _tensors(values):
        if not tensor.is_meta and tensor.layout == torch.strided:
            tensors.setdefault(id(tensor), tensor)
            if tensor._base is not None:
                tensors.setdefault(id(tensor._base), tensor._base)
    grouped: dict[int, list[Tensor]] = {}
    for tensor in tensors.values():
        grouped.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
    return grouped


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif is_dataclass(values) and not isinstance(values, type):
        for item in fields(values):
            yield from _tensors(getattr(values, item.name))
