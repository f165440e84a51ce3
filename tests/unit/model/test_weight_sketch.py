"""Projections of weights: by another implementation, and what they tell apart."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from quantaudit.model import weight_sketch
from quantaudit.model.weight_sketch import ROWS, Sketcher, correlation, difference, sketch_of, sketches


def signs(axis: str, size: int) -> np.ndarray:
    """Bit by bit, from the same stream."""
    stream = hashlib.shake_256(axis.encode()).digest(2 * size)
    bits = [(byte >> (7 - bit)) & 1 for byte in stream for bit in range(8)]
    return np.array(bits, np.float64).reshape(size, 16) * 2 - 1


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(24, 40), (ROWS + 9, 4), (50,), (3, 5, 7), (1, 1)])
def test_projections_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    weight = random(*shape).bfloat16()
    sketch = sketch_of(weight)
    assert sketch is not None
    matrix = weight.double().numpy().reshape(-1, shape[-1] if len(shape) > 1 else 1)
    rows, columns = signs("rows", len(matrix)), signs("columns", matrix.shape[1])
    expected = np.array([rows[:, k] @ matrix @ columns[:, k] for k in range(16)]) / np.linalg.norm(matrix)
    kept = np.frombuffer(bytes.fromhex(sketch.projections), np.int8) / 16
    np.testing.assert_allclose(kept, np.clip(expected, -127 / 16, 127 / 16), atol=1 / 32 + 1e-9)
    assert sketch.rms == pytest.approx(np.sqrt((matrix**2).mean()), rel=1e-6)


def test_rows_in_parts_give_the_same_bytes() -> None:
    weight = random(300, 32)
    sketcher = Sketcher(32)
    for start in range(0, 300, 77):
        sketcher.add(start, weight[start : start + 77])
    assert sketcher.sketch() == sketch_of(weight)


@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_a_difference_is_estimated_without_bias(noise: float) -> None:
    squares = []
    for seed in range(200):
        weight = random(48, 64, seed=seed)
        first, second = sketch_of(weight), sketch_of(weight + noise * random(48, 64, seed=seed + 1000))
        assert first is not None
        assert second is not None
        squares.append(difference(first, second) ** 2)
    assert np.mean(squares) == pytest.approx(noise**2 + 2 * (1 / 16) ** 2 / 12, rel=0.15)


def test_other_weights_of_the_same_statistics_are_told_apart() -> None:
    weight = random(128, 128)
    own = sketch_of(weight)
    assert own is not None
    for other in (
        weight.T,
        random(128, 128, seed=1),
        weight.flip(0),
        weight[torch.randperm(128)],
        3 * weight,
        0 * weight,
    ):
        sketch = sketch_of(other.contiguous())
        assert sketch is not None
        assert difference(own, sketch) > 0.6
    tripled = sketch_of(3 * weight)
    assert tripled is not None
    assert correlation(own, tripled) == pytest.approx(1)


def test_zeros_and_what_is_not_finite() -> None:
    zero = sketch_of(torch.zeros(4, 4))
    assert zero is not None
    assert (zero.rms, difference(zero, zero), correlation(zero, zero)) == (0, 0, 0)
    some = sketch_of(torch.ones(4, 4))
    assert some is not None
    assert difference(zero, some) == float("inf")
    assert difference(some, zero) > 0.5
    assert sketch_of(torch.full((4, 4), float("nan"))) is None
    assert sketch_of(torch.full((4, 4), float("inf"))) is None
    assert sketch_of(torch.zeros(0, 4)) is None


def test_of_a_model_those_that_have_values() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, device="meta"))
    assert list(sketches(model, "m.")) == ["m.0.bias", "m.0.weight"]


def test_signs_of_a_tall_weight_are_drawn_few_times() -> None:
    """Convolutions have millions of rows of three; signs for each part from the beginning took minutes."""
    weight_sketch._signs.cache_clear()
    sketch_of(torch.ones(40 * weight_sketch.ROWS, 3))
    assert weight_sketch._signs.cache_info().misses < 10
