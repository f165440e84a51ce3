"""Softmax in one pass: the bits of the three passes that it stands for, and nothing else changes."""

import pytest
import torch
from torch import Tensor, nn

from quantaudit.model.forward import half_softmax as module
from quantaudit.model.forward.half_softmax import LANES, HalfSoftmax, half_softmax, rounded_softmax, same_bits

HALVES = [torch.bfloat16, torch.float16]


def softmax(scores: Tensor) -> Tensor:
    """As the models of transformers write it."""
    return nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [LANES, LANES + 1, 47, 63, 64, 200, 511, 777])
@pytest.mark.parametrize("scale", [0.1, 3.0, 40.0])
def test_rounded_softmax_gives_the_bits_of_float32_rounded(dtype: torch.dtype, width: int, scale: float) -> None:
    scores = (scale * torch.randn(120, width, generator=torch.Generator().manual_seed(width))).to(dtype)
    scores[20:60].masked_fill_(torch.rand(40, width) < 0.5, torch.finfo(dtype).min)
    scores[60:80, 1:].masked_fill_(torch.rand(20, width - 1) < 0.5, -torch.inf)
    scores[80] = torch.finfo(dtype).min
    scores[81] = -torch.inf
    scores[82, 0], scores[83, 0] = torch.nan, torch.inf
    assert torch.equal(bits(rounded_softmax(scores)), bits(softmax(scores)))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_softmax_that_is_rounded_runs_in_the_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    scores, seen = torch.randn(2, 3, 60, 60).to(dtype), []
    monkeypatch.setattr(module, "rounded_softmax", lambda x: seen.append(x.shape) or rounded_softmax(x))
    expected = softmax(scores)
    with HalfSoftmax():
        assert torch.equal(bits(softmax(scores)), bits(expected))
    assert seen == [scores.shape]


def test_a_softmax_that_stays_in_float32_is_computed_in_float32() -> None:
    scores = torch.randn(4, 64, 128).bfloat16()
    expected = nn.functional.softmax(scores, -1, dtype=torch.float32)
    with HalfSoftmax():
        kept = nn.functional.softmax(scores, -1, dtype=torch.float32)
        used = nn.functional.softmax(scores, -1, dtype=torch.float32) + 0
        other = nn.functional.softmax(scores, -1, dtype=torch.float32).to(torch.float16)
        last = nn.functional.softmax(scores, -1, dtype=torch.float32)
    for result in (kept, used, last):
        assert torch.equal(result, expected)
    assert torch.equal(other, expected.to(torch.float16))


def test_gradients_are_those_of_float32() -> None:
    scores = torch.randn(4, 64, 128).bfloat16().requires_grad_()
    softmax(scores)[..., 0].sum().backward()
    expected, scores.grad = scores.grad, None
    with HalfSoftmax():
        softmax(scores)[..., 0].sum().backward()
    assert torch.equal(bits(scores.grad), bits(expected))


def test_it_is_for_models_in_16_bits_in_main_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(half_softmax(nn.Linear(2, 2, dtype=torch.bfloat16)), HalfSoftmax) is same_bits(torch.bfloat16)
    assert not isinstance(half_softmax(nn.Linear(2, 2)), HalfSoftmax)
    monkeypatch.setattr(module, "same_bits", lambda dtype: False)
    assert not isinstance(half_softmax(nn.Linear(2, 2, dtype=torch.bfloat16)), HalfSoftmax)
