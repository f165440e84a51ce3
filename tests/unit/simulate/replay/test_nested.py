"""Tensors are found, exchanged and compared in nested arguments."""

from __future__ import annotations

from collections import UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from quantaudit.simulate.replay.nested import detached, item_at, mapped, tensors_in, unknown_in, written

Pair = namedtuple("Pair", "first second")


def tensors(count: int) -> list[Tensor]:
    return [torch.full((1,), float(number)) for number in range(count)]


def test_every_tensor_is_exchanged_in_containers_of_the_same_kind() -> None:
    a, b, c, d = tensors(4)
    value = (a, [b, None, "text"], UserDict({"k": (c,)}), Pair(d, 1))
    assert [float(x) for x in tensors_in(value)] == [0, 1, 2, 3]
    changed = mapped(value, lambda tensor: tensor + 10)
    assert [float(x) for x in tensors_in(changed)] == [10, 11, 12, 13]
    assert type(changed[2]) is UserDict
    assert changed[3].second == 1
    assert changed[1] is not value[1]
    assert value[2]["k"][0] is c


def test_what_is_detached_shares_its_memory() -> None:
    x = torch.ones(2, requires_grad=True)
    (alone,) = detached((x,))
    assert not alone.requires_grad
    assert alone.data_ptr() == x.data_ptr()


def test_entries_that_were_written_into_mappings_are_found() -> None:
    a, b, c, d = tensors(4)
    before: tuple[Any, ...] = (a, {"kept": b, "changed": (b, c), "inner": {"x": c}})
    after = mapped(before, lambda tensor: tensor)
    assert list(written(before, after)) == []
    after[1]["new"] = d
    after[1]["changed"] = (b, d)
    after[1]["inner"]["y"] = a
    assert list(written(before, after)) == [(1, "changed"), (1, "inner", "y"), (1, "new")]
    assert item_at(after, (1, "new")) is d


@pytest.mark.parametrize("depth", [0, 1])
def test_objects_that_hide_a_graph_are_named(depth: int) -> None:
    x = torch.ones(1, requires_grad=True)
    cache = SimpleNamespace(key=x) if depth == 0 else SimpleNamespace(layers=[SimpleNamespace(key=x)])
    assert list(unknown_in((x, {"cache": cache}))) == [cache]
    assert list(unknown_in((x, None, 1, SimpleNamespace(key=x.detach()), torch.float32))) == []
