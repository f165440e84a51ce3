"""What cannot be simulated is named, and only that."""

from __future__ import annotations

import pytest
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, preset_name_to_scheme

from quantaudit.quant.support import approximations, obstacles

WIDE, NARROW = (64, 256), (64, 100)
INT8 = {"num_bits": 8, "type": "int", "strategy": "tensor"}


def scheme(**parts: QuantizationArgs | None) -> QuantizationScheme:
    return QuantizationScheme(targets=["Linear"], **parts)


@pytest.mark.parametrize("preset", ["W8A8", "W4A16", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8"])
def test_presets_are_simulated_exactly(preset: str) -> None:
    actual = preset_name_to_scheme(preset, ["Linear"])
    assert obstacles(actual, WIDE) == []
    assert approximations(actual) == []


@pytest.mark.parametrize(("preset", "count"), [("W4A16", 1), ("NVFP4", 2), ("FP8_BLOCK", 1), ("W8A8", 0)])
def test_groups_that_do_not_divide_are_named(preset: str, count: int) -> None:
    actual = obstacles(preset_name_to_scheme(preset, ["Linear"]), NARROW)
    assert len(actual) == count
    assert all("100" in reason for reason in actual)


def test_what_was_not_kept_is_named() -> None:
    weights = QuantizationArgs(num_bits=8, strategy="channel", observer="imatrix_mse")
    actual = obstacles(
        scheme(
            weights=weights,
            input_activations=QuantizationArgs(**INT8, observer="memoryless_mse"),
            output_activations=QuantizationArgs(**INT8),
        ),
        WIDE,
    )
    assert ["imatrix_mse" in actual[0], "memoryless_mse" in actual[1], "output" in actual[2]] == [True] * 3
    groups = QuantizationArgs(num_bits=8, strategy="group", group_size=32)
    assert "ranges that are not kept" in obstacles(scheme(input_activations=groups), WIDE)[0]


@pytest.mark.parametrize("observer", [None, "minmax", "static_minmax", "memoryless_minmax"])
def test_observers_of_extremes_are_exact(observer: str | None) -> None:
    actual = scheme(input_activations=QuantizationArgs(**INT8, observer=observer))
    assert (obstacles(actual, WIDE), approximations(actual)) == ([], [])


def test_an_observer_that_searches_is_marked() -> None:
    actual = scheme(input_activations=QuantizationArgs(**INT8, observer="mse"))
    assert obstacles(actual, WIDE) == []
    assert len(approximations(actual)) == 1
