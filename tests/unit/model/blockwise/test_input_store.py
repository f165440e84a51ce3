"""What waits is emptied in place within a budget and filled again, bit for bit; what others look at stays."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quantaudit.errors import OutputError
from quantaudit.model.blockwise.input_store import InputStore, Room

SIZE = 64 * 64 * 2
"""Bytes of a tensor here."""


@pytest.fixture
def store() -> Any:
    with InputStore(nn.Linear(64, 64), Room(device=0)) as made:
        yield made


def random(seed: int = 0) -> Tensor:
    return torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def test_tensors_are_emptied_and_come_back_to_whoever_refers_to_them(store: InputStore) -> None:
    hidden, mask = random(), random(1).t()
    expected = hidden.clone(), mask.clone(), mask.stride()
    caller = {"hidden": hidden, "masks": [mask]}
    store.put(7, ((hidden,), {"mask": mask, "nothing": None, "flag": True}))
    assert hidden.numel() == mask.numel() == 0
    assert store.written == 2 * SIZE
    store.take(7)
    assert torch.equal(caller["hidden"], expected[0])
    assert torch.equal(caller["masks"][0], expected[1])
    assert mask.stride() == expected[2]


def test_it_keeps_what_came_first_within_its_room() -> None:
    with InputStore(nn.Linear(64, 64), Room(device=2 * SIZE)) as store:
        waiting = [random(n) for n in range(4)]
        for number, hidden in enumerate(waiting):
            store.put(number, (hidden,))
        assert [hidden.numel() > 0 for hidden in waiting] == [True, True, False, False]
        store.take(0)
        store.put(0, (waiting[0],))
        assert waiting[0].numel() > 0
        for number in range(4):
            store.take(number)
        assert all(torch.equal(hidden, random(n)) for n, hidden in enumerate(waiting))
        store.put(9, (waiting[3],))
        assert waiting[3].numel() > 0  # all room is there again


def test_what_two_batches_share_is_moved_for_neither() -> None:
    with InputStore(nn.Linear(64, 64), Room(device=SIZE)) as store:
        shared, own = random(), random(1)
        store.put(0, (shared,))
        store.put(1, (own, shared))
        assert shared.numel()
        assert not own.numel()
        store.take(0)
        store.put(0, (shared,))
        store.take(1)
        assert torch.equal(own, random(1))
        store.take(0)
        store.put(2, (own,))  # what is shared counts once, and no longer
        assert own.numel()


def test_weights_and_what_somebody_else_looks_at_stay(store: InputStore) -> None:
    model = nn.Linear(64, 64)
    seen, small = random(), torch.zeros(8)
    elsewhere = seen[:3]
    with InputStore(model, Room(device=0)) as own:
        own.put(0, (model.weight.detach(), seen, small))
        assert seen.numel()
        assert small.numel()
        assert model.weight.numel()
        assert own.written == 0
    assert elsewhere.numel()


def test_views_move_with_what_they_are_views_of(store: InputStore) -> None:
    base = random()
    view = base.view(32, 128)
    store.put(0, (view,))
    assert base.numel() == view.numel() == 0
    store.take(0)
    assert torch.equal(base, random())
    view[0, 0] = 5
    assert base[0, 0] == 5


def test_dataclasses_are_looked_into(store: InputStore) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    hidden = random()
    store.put(0, BaseModelOutput(last_hidden_state=hidden))
    assert hidden.numel() == 0
    store.take(0)
    assert torch.equal(hidden, random())


def test_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with InputStore(nn.Linear(64, 64), Room(device=0)) as store:
        waiting = random()
        store.put(0, (waiting,))
        assert [path.stat().st_size for path in tmp_path.glob("*/*")] == [SIZE]
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_a_full_disk_is_said(monkeypatch: pytest.MonkeyPatch, store: InputStore) -> None:
    def full(self: Path, *_args: object, **_named: object) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OutputError, match=r"cannot be written: No space left on device\s+set TMPDIR"):
        store.put(0, (random(),))
