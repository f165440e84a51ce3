"""Tensors in what modules take and return: nested tuples, lists and mappings, always in one order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from copy import copy
from typing import Any

from torch import Tensor

Place = tuple[Any, ...]
"""Where something is in nested values: an index or a key for each level."""


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same with other tensors, in containers of its own; anything else is handed on unmodified."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        items = [mapped(item, change) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    if type(value) is list:
        return [mapped(item, change) for item in value]
    if not isinstance(value, MutableMapping):
        return value
    copied = copy(value)
    for key, item in value.items():
        copied[key] = mapped(item, change)
    return copied


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor, in the order in which `mapped` comes to them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, MutableMapping):
        for item in value.values():
            yield from tensors_in(item)


def detached(value: Any) -> Any:
    """The same without a graph, in copied containers: states that layers share are replayed as they were then."""
    return mapped(value, Tensor.detach)


def written(before: Any, after: Any, place: Place = ()) -> Iterator[Place]:
    """Where mappings of `after` have entries that those of `before` do not have, as a module may leave for others.

    after: what `mapped` made of `before` with the same tensors, and was then handed out.
    """
    if isinstance(before, MutableMapping):
        for key, item in after.items():
            if key in before and isinstance(item, MutableMapping):
                yield from written(before[key], item, (*place, key))
            elif key not in before or not _same(before[key], item):
                yield (*place, key)
    elif isinstance(before, tuple | list):
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            yield from written(one, other, (*place, index))


def item_at(value: Any, place: Place) -> Any:
    """What is at a place."""
    for key in place:
        value = value[key]
    return value


def unknown_in(value: Any, known: Sequence[type] = (bool, int, float, str, bytes)) -> Iterator[object]:
    """Objects that may hold tensors which `tensors_in` does not come to."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from unknown_in(item, known)
    elif isinstance(value, MutableMapping):
        for item in value.values():
            yield from unknown_in(item, known)
    elif value is not None and not isinstance(value, (Tensor, *known)) and any(map(_holds_graph, _held(value))):
        yield value


def _held(value: Any) -> list[Any]:
    return list(getattr(value, "__dict__", {}).values())


def _holds_graph(value: Any) -> bool:
    """Whether there is a tensor with a graph in a value, or in the objects of a list in it, as caches have them."""
    items = value if isinstance(value, list | tuple) else [value]
    inner = [item for one in items for item in (one, *(_held(one) if not isinstance(one, Tensor) else ()))]
    return any(isinstance(item, Tensor) and item.requires_grad for item in inner)


def _same(one: Any, other: Any) -> bool:
    return [id(tensor) for tensor in tensors_in(one)] == [id(tensor) for tensor in tensors_in(other)]
