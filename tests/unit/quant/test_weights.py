"""Weights are quantized as llm-compressor quantizes them: its observers on its flattened weights."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from torch import nn
from transformers.pytorch_utils import Conv1D

from quantaudit.errors import MeasurementError
from quantaudit.quant.weights import SHARED, quantize_linear, quantize_weight, quantize_weights, scale_group

PRESETS = ("W8A8", "W4A16", "W4A16_ASYM", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4", "MXFP4", "MXFP8", "W2A16")


def weight(rows: int = 130, columns: int = 256, seed: int = 0) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x[:, 3] *= 20
    return (x * torch.linspace(0.1, 9, rows)[:, None]).bfloat16()


def args_of(preset: str, observer: str | None = None) -> QuantizationArgs:
    args = preset_name_to_scheme(preset, ["Linear"]).weights
    assert args is not None
    return args.model_copy(update={"observer": observer}) if observer else args


def theirs(weights: list[torch.Tensor], args: QuantizationArgs, observer: str) -> list[torch.Tensor]:
    """llm-compressor's own observers, fused where there are several."""
    from llmcompressor.observers import Observer
    from llmcompressor.observers.fusion import FusionHandler

    pairs = []
    for _ in weights:
        actual = Observer.load_from_registry(observer, base_name="weight", args=args.model_copy(deep=True))
        pairs.append((actual, nn.Linear(1, 1)))
    if len(pairs) > 1:
        for (_, module), tensor in zip(pairs, weights, strict=True):
            module.weight = nn.Parameter(tensor)
        FusionHandler.fuse(pairs)
    for (actual, _), tensor in zip(pairs, weights, strict=True):
        actual(tensor)
    restored = []
    for (actual, _), tensor in zip(pairs, weights, strict=True):
        got = actual.get_qparams()
        restored.append(fake_quantize(tensor, got["scale"], got["zero_point"], args, got["global_scale"]))
    return restored


@pytest.mark.parametrize("preset", PRESETS)
def test_every_strategy_is_llmcompressors(preset: str) -> None:
    x, args = weight(), args_of(preset)
    actual = quantize_weight(x, args)
    assert actual.dtype == x.dtype
    assert not torch.equal(actual, x)
    assert torch.equal(actual, theirs([x], args, "memoryless_minmax")[0])


@pytest.mark.parametrize("preset", ["W8A8", "W4A16", "FP8", "NVFP4"])
def test_a_searched_range_is_llmcompressors(preset: str) -> None:
    """What a recipe calls `mse` is run as `memoryless_mse` on weights."""
    x, args = weight(20), args_of(preset, "mse")
    actual = quantize_weight(x, args)
    assert torch.equal(actual, theirs([x], args, "memoryless_mse")[0])
    assert preset == "FP8" or not torch.equal(actual, quantize_weight(x, args_of(preset)))


def test_fused_projections_share_one_global_scale() -> None:
    args, weights = args_of("NVFP4"), [weight(seed=1), weight(seed=2) * 7]
    actual = quantize_weights(weights, args)
    for one, other in zip(actual, theirs(weights, args, "memoryless_minmax"), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(actual[0], quantize_weight(weights[0], args))


def test_llmcompressor_still_shares_among_the_same_siblings() -> None:
    from llmcompressor.observers.helpers import FUSED_LAYER_NAMES

    assert tuple(FUSED_LAYER_NAMES) == SHARED


def test_siblings_are_those_of_the_same_parent_that_are_quantized_too() -> None:
    paths = [f"model.layers.{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    assert scale_group(paths[1], paths) == paths[:3]
    assert scale_group(paths[0], [paths[0], paths[2]]) == [paths[0], paths[2]]
    assert scale_group(paths[3], paths) == [paths[3]]
    assert scale_group("up_proj", ["gate_proj", "up_proj"]) == ["gate_proj", "up_proj"]


@pytest.mark.parametrize("columns", [100, 130, 300])
def test_columns_that_do_not_divide_into_groups_are_an_error(columns: int) -> None:
    with pytest.raises(MeasurementError, match=f"{columns} columns do not divide into groups of 128"):
        quantize_weight(weight(4, columns), args_of("W4A16"))


def test_a_transposed_linear_keeps_its_layout() -> None:
    conv = Conv1D(24, 128)
    conv.weight = nn.Parameter(weight(24, 128).T.contiguous())
    actual = quantize_linear(conv, args_of("W4A16"))
    assert torch.equal(actual, quantize_weight(weight(24, 128), args_of("W4A16")).T)
