"""What rounding takes of a weight, from its codes and scales, next to what it took."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor

from quantaudit.conform.artifacts.records import QuantizedModule
from quantaudit.conform.contents import weight_contents
from quantaudit.conform.contract import linear_forms, usual_format
from quantaudit.conform.rules.rounding import Change, difference_limit, moved_factors, ratio_limit
from tests.memory_tensors import MemoryTensors

GRIDS = {"W8A8": (8, None), "W4A16": (4, 128), "W3A16": (3, 128), "FP8_DYNAMIC": (8, None)}


@pytest.mark.parametrize("preset", sorted(GRIDS))
def test_what_rounding_takes_is_told_from_codes_and_scales(preset: str) -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).mul(0.05)
    contents, rounded = _contents(preset, weight)
    took = float((rounded - weight).norm() / weight.norm())
    assert contents == pytest.approx(took, rel=0.15)


def test_limits_follow_what_rounding_takes_and_how_many_weights_there_are() -> None:
    def change(rounding: float) -> Change:
        return Change(difference=0.0, log_ratio=0.0, rounding=rounding)

    assert difference_limit([change(0.0)]) == pytest.approx(2 * math.sqrt(2 / 12) / 16)
    assert difference_limit([change(0.1)]) == pytest.approx(2 * math.hypot(0.26, 1 / 16 / math.sqrt(6)))
    assert difference_limit([change(0.1)] * 100) == pytest.approx(1.1 * math.hypot(0.26, 1 / 16 / math.sqrt(6)))
    assert ratio_limit([change(0.0)] * 2) == pytest.approx(0.005)
    assert ratio_limit([change(0.1)]) > ratio_limit([change(0.1)] * 2)


def _contents(preset: str, weight: Tensor) -> tuple[float, Tensor]:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    args = scheme.weights
    assert args is not None
    bits, width = GRIDS[preset]
    grouped = weight.reshape(len(weight), -1, width or weight.shape[1])
    scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
    state: Mapping[str, Tensor] = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    format = usual_format(scheme)
    compressor = BaseCompressor.get_value_from_registry(format.value)
    stored = {f"m.{name}": tensor for name, tensor in compressor.compress(dict(state), scheme).items()}
    shape = tuple(weight.shape)
    row = QuantizedModule(
        module="m", saved="m", group="g", scheme=scheme, format=format, shape=shape,
        forms=linear_forms(scheme, format, shape, torch.float32),
    )  # fmt: skip
    found, _ = weight_contents(MemoryTensors(stored), row)
    back = compressor.decompress({name[2:]: tensor for name, tensor in stored.items()}, scheme)["weight"]
    assert found.rounding is not None
    assert bits == found.bits
    return found.rounding, back


@pytest.mark.parametrize(
    ("rows", "columns", "excused"),
    [
        ((0.10, 0.05), (0.08, -0.04), True),  # a factor on all rows, and its inverse
        ((0.24, 0.093), (0.24, 0.020), True),  # factors that vary: both grow
        ((0.10, 0.10), (0.11, 0.0), False),  # one alone
        ((0.35, -0.43), (0.35, -0.43), False),  # the same factor on both
        ((0.10, 0.10), (0.10, 0.10), False),
        ((0.25, -0.03), (0.25, -0.03), False),  # rows of both lost
    ],
)
def test_factors_that_awq_moves_are_told_from_one_that_is_lost(
    rows: tuple[float, float], columns: tuple[float, float], excused: bool
) -> None:
    changes = {
        f"mlp.{leaf}": Change(difference=size, log_ratio=gain, rounding=0.01)
        for leaf, (size, gain) in {"up_proj": rows, "down_proj": columns, "gate_proj": rows}.items()
    }
    assert moved_factors(changes, {"mlp.up_proj"}) == ({"mlp.up_proj", "mlp.down_proj"} if excused else set())
    assert moved_factors(changes, {"mlp.gate_proj"}) == set()
