"""What weights will take is known from the headers of their files, and a budget that is too small is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from quantaudit.errors import UsageError
from quantaudit.model.blockwise.budget import (
    PROGRAM,
    Needs,
    activation_bytes,
    block_bytes,
    copies_bytes,
    fits,
    loaded_dtype,
    room_for_inputs,
    weight_bytes,
)
from quantaudit.model.blockwise.memory import resident_bytes
from quantaudit.model.forward.float32_products import WEIGHT_BYTES
from quantaudit.model.loading.checkpoint import locate
from tests.builders import save_checkpoint, tiny_config, tiny_model


@pytest.mark.parametrize(("dtype", "item"), [("auto", 2), ("bfloat16", 2), ("float32", 4)])
def test_weights_by_their_headers(tmp_path: Path, dtype: str, item: int) -> None:
    model = tiny_model("llama", tie_word_embeddings=False)
    save_checkpoint(tmp_path, model, max_shard_size="50KB")
    assert weight_bytes(locate(str(tmp_path)), dtype) == item * sum(p.numel() for p in model.parameters())


def test_weights_fit_next_to_what_is_there() -> None:
    budget = resident_bytes() + PROGRAM + (1 << 28)
    assert fits(1 << 20, budget, copies=1, wide=False)
    assert not fits(1 << 30, budget, copies=1, wide=False)
    assert fits(100 << 20, budget, copies=1, wide=False)
    assert not fits(100 << 20, budget, copies=3, wide=False)
    assert not fits(100 << 20, budget, copies=1, wide=True)


def test_room_is_what_a_run_leaves_of_its_budget() -> None:
    needed = Needs(present=1 << 30, block=1 << 29, batch=1 << 20)
    cpu = torch.device("cpu")
    assert room_for_inputs(needed.least + 123, needed, cpu).device == 123
    assert room_for_inputs(needed.least - 1, needed, cpu).device == 0
    with pytest.raises(UsageError, match=r"a single block does not fit"):
        room_for_inputs((1 << 30) + (1 << 29) - 1, needed, cpu)


def test_eager_attention_needs_memory_for_its_scores() -> None:
    config = tiny_config("llama")
    scores = activation_bytes(config, 2, 100, eager=True) - activation_bytes(config, 2, 100, eager=False)
    assert scores == 2 * 100 * 100 * 4 * 16
    assert activation_bytes(config, 1, 10, eager=False) >= 10 * (64 + 128) * 2


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_that_weights_are_loaded_in_is_known_before(tmp_path: Path, stored: torch.dtype) -> None:
    save_checkpoint(tmp_path, tiny_model("llama").to(stored))
    checkpoint = locate(str(tmp_path))
    assert loaded_dtype(checkpoint, "auto") == stored
    assert loaded_dtype(checkpoint, "float32") == torch.float32


def test_float32_copies_are_bounded_and_belong_to_a_block() -> None:
    assert copies_bytes(1 << 20) == 1 << 21
    assert copies_bytes(1 << 40) == WEIGHT_BYTES
    plain, copied = (block_bytes(1 << 20, converted=True, wide=wide) for wide in (False, True))
    assert copied - plain == copies_bytes(1 << 20)
