"""Copies of weights: never of what a weight was, never more than the budget, and the same bits as a conversion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quantaudit.model.forward.float32_products import WEIGHT_BYTES, float32_products
from quantaudit.model.forward.wide_weights import PATIENCE, WideWeights


def parameter(rows: int = 32, columns: int = 16, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(rows, columns, generator=generator).to(torch.bfloat16), requires_grad=False)


SIZE = 32 * 16 * 4


@torch.no_grad()
@pytest.mark.parametrize("budget", [0, SIZE])
def test_copies_are_conversions_with_the_same_strides(budget: int) -> None:
    weights, weight = WideWeights(budget), parameter()
    for _ in range(2):
        for view in (weight, weight.t(), weight[4:20], weight[4:20].t(), weight[:, 3:9]):
            actual = weights.of(view)
            assert actual.dtype == torch.float32
            assert torch.equal(actual, view.float())
            if view.shape != (32, 6):
                assert actual.stride() == view.stride()
    assert weights.bytes <= budget


@torch.no_grad()
def test_a_weight_and_its_transpose_share_a_copy() -> None:
    weights, weight = WideWeights(1 << 20), parameter()
    assert weights.of(weight).data_ptr() == weights.of(weight.t()).data_ptr() == weights.of(weight).data_ptr()
    assert weights.bytes == SIZE


@torch.no_grad()
def test_a_weight_that_was_written_to_is_converted_again() -> None:
    weights, weight = WideWeights(1 << 20), parameter()
    weights.of(weight)
    weight.mul_(2)
    assert torch.equal(weights.of(weight.t()), weight.t().float())
    weight.data = parameter(seed=1).data
    assert torch.equal(weights.of(weight), weight.float())


@torch.no_grad()
def test_memory_that_is_used_again_is_no_old_weight() -> None:
    weights = WideWeights(1 << 20)
    for seed in range(50):
        weight = parameter(seed=seed)
        assert torch.equal(weights.of(weight), weight.float())
        del weight
    assert weights.bytes <= 1 << 20


@torch.no_grad()
def test_copies_stay_within_the_budget_and_make_room_for_what_is_used() -> None:
    weights, old, new = WideWeights(2 * SIZE), [parameter(seed=1), parameter(seed=2)], parameter(seed=3)
    for weight in old:
        weights.of(weight)
    kept = weights.of(old[0]).data_ptr()
    for _ in range(PATIENCE):
        assert torch.equal(weights.of(new), new.float())
    assert weights.of(old[0]).data_ptr() == kept  # not yet
    places = {weights.of(new).data_ptr() for _ in range(4 * PATIENCE)}
    assert weights.bytes == 2 * SIZE
    assert weights.of(new).data_ptr() in places
    assert weights.of(new)._base is not None
    weights.budget = 0
    assert weights.bytes == 0


@torch.no_grad()
def test_copies_of_weights_that_are_gone_make_room_at_once() -> None:
    weights, weight = WideWeights(SIZE), parameter()
    weights.of(weight)
    del weight
    other = parameter(seed=1)
    assert weights.of(other).data_ptr() == weights.of(other).data_ptr()
    assert weights.bytes == SIZE
    first = weights.of(other)
    weights.of(parameter(seed=2))
    assert torch.equal(first, other.float())


@torch.no_grad()
def test_activations_are_not_kept() -> None:
    weights = WideWeights(1 << 20)
    weights.of(torch.ones(4, 4, dtype=torch.bfloat16))
    with torch.inference_mode():
        weights.of(nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16), requires_grad=False))
    assert weights.bytes == 0


@torch.no_grad()
@pytest.mark.parametrize("budget", [0, 1 << 12, WEIGHT_BYTES])
def test_whether_copies_are_kept_changes_no_bit(budget: int) -> None:
    model = nn.Sequential(nn.Linear(64, 300), nn.GELU(), nn.Linear(300, 5000)).to(torch.bfloat16)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    def run(size: int) -> list[Tensor]:
        with float32_products(torch.bfloat16, weight_bytes=size):
            return [model(x) for _ in range(3)]

    assert all(torch.equal(one, run(WEIGHT_BYTES)[0]) for one in run(budget))
