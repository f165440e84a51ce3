"""Where a static scale reaches, against what compressed-tensors makes of values there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize

from quantaudit.quant.grid import grid_of

SCALE = 0.375
FORMATS: dict[str, tuple[dict[str, Any], int]] = {
    "INT8": ({}, 0),
    "INT8 asymmetric": ({"num_bits": 8, "symmetric": False}, -100),
    "INT4": ({"num_bits": 4, "type": "int"}, 0),
    "FP8": ({"num_bits": 8, "type": "float"}, 0),
    "FP4": ({"num_bits": 4, "type": "float"}, 0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_grid_is_that_of_compressed_tensors(name: str) -> None:
    arguments, zero_point = FORMATS[name]
    grid = grid_of(arguments, SCALE, zero_point)
    assert grid is not None
    args = QuantizationArgs(strategy="tensor", **arguments)

    def stored(*values: float) -> list[float]:
        point = torch.tensor([zero_point], dtype=torch.int8)
        quantized = fake_quantize(torch.tensor(values), torch.tensor([SCALE]), point, args)
        return [abs(value) for value in quantized.tolist()]

    assert max(stored(1e6, -1e6)) == pytest.approx(grid.largest)
    below, above = stored(grid.zeroed * 0.99, grid.zeroed * 1.01)
    assert (below, above) == (0.0, pytest.approx(grid.step))
    assert grid.even == (arguments.get("type") != "float")
    assert stored(grid.step * 2)[0] - stored(grid.step)[0] == pytest.approx(grid.step)


@pytest.mark.parametrize(("arguments", "scale"), [({}, None), ({}, 0.0), ({"num_bits": 6, "type": "float"}, 1.0)])
def test_without_a_scale_or_a_known_format_there_is_no_grid(arguments: dict[str, Any], scale: float | None) -> None:
    assert grid_of(arguments, scale) is None
