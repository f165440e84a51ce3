"""The contract of a scheme against what compressed-tensors makes of a real weight, and the contents against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
from compressed_tensors.quantization.lifecycle.initialize import initialize_qparams
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
from torch import Tensor, nn

from quantaudit.conform.artifacts.records import QuantizedModule
from quantaudit.conform.contents import dense_contents, scale_values, weight_contents
from quantaudit.conform.contract import format_of, linear_forms, usual_format
from quantaudit.conform.rules.schemes import fused_units
from tests.memory_tensors import MemoryTensors

PRESETS = [name for name in PRESET_SCHEMES if name != "UNQUANTIZED"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", [(256, 384), (96, 128)])
def test_forms_are_those_of_a_weight_that_was_really_compressed(preset: str, shape: tuple[int, int]) -> None:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    format = usual_format(scheme)
    module = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16)
    parts = {"input": scheme.input_activations, "weight": scheme.weights}
    observed = {"input": shape[1:], "weight": shape}
    for base, args in parts.items():
        if args is not None:
            initialize_qparams(module, base, args, observed_shape=observed[base], observed_dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(0.01 if "global" not in name else 1.0)
    state: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    stored = BaseCompressor.get_value_from_registry(format.value).compress(state, scheme)
    forms = linear_forms(scheme, format, shape, torch.bfloat16)
    assert {name: (tuple(t.shape), t.dtype) for name, t in stored.items()} == {
        leaf: (form.shape, form.dtypes[0]) for leaf, form in forms.items()
    }


def test_the_format_of_a_group_goes_before_that_of_the_whole() -> None:
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    assert format_of(scheme, "mixed-precision").value == "pack-quantized"
    assert format_of(scheme, "int-quantized").value == "int-quantized"
    named = scheme.model_copy(update={"format": "naive-quantized"})
    assert format_of(named, "pack-quantized").value == "naive-quantized"


def test_an_index_of_groups_is_expected_where_columns_were_reordered() -> None:
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    forms = linear_forms(scheme, usual_format(scheme), (64, 256), torch.bfloat16, group_index=True)
    assert forms["weight_g_idx"].shape == (256,)


def packed(preset: str, like: Tensor, **tensors: Tensor) -> tuple[MemoryTensors, QuantizedModule]:
    scheme = preset_name_to_scheme(preset, ["Linear"])
    format = usual_format(scheme)
    row = QuantizedModule(
        module="m", saved="s", group="g", scheme=scheme, format=format, shape=tuple(like.shape),
        forms=linear_forms(scheme, format, tuple(like.shape), torch.bfloat16),
    )  # fmt: skip
    return MemoryTensors({f"s.{name}": tensor for name, tensor in tensors.items()}), row


def test_packed_codes_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(-8, 8, (48, 256)).astype(np.int8)
    codes[5] = 0
    zero = rng.integers(-3, 3, (48, 2)).astype(np.int8)
    codes[7, :128] = zero[7, 0]
    scale = torch.from_numpy(rng.uniform(0.01, 0.02, (48, 2))).bfloat16()
    tensors, row = packed(
        "W4A16_ASYM",
        torch.empty(48, 256),
        weight_packed=pack_to_int32(torch.from_numpy(codes), 4),
        weight_zero_point=pack_to_int32(torch.from_numpy(zero), 4, packed_dim=0).contiguous(),
        weight_scale=scale,
        weight_shape=torch.tensor([48, 256]),
    )
    result, idle = weight_contents(tensors, row)
    shifted = codes.reshape(48, 2, 128).astype(np.float64) - zero[:, :, None]
    weight = shifted * scale.double().numpy()[:, :, None]
    assert (result.lowest, result.highest, result.first, result.last) == (-8, 7, -8, 7)
    assert result.gain == pytest.approx(np.sqrt((weight**2).mean()) * np.sqrt(256))
    assert idle is not None
    np.testing.assert_array_equal(idle, np.abs(shifted).max(-1).reshape(-1) == 0)
    assert idle.sum() >= 1
    live = np.abs(shifted).max(-1).reshape(-1)
    assert result.reach == pytest.approx(np.median(live[live > 0]) / 7.5)
    assert not result.constant
    assert result.edged == 0


def test_blocks_that_do_not_divide_are_padded() -> None:
    rng = np.random.default_rng(1)
    codes = torch.from_numpy(rng.normal(size=(200, 256)) * 100).clamp(-448, 448).to(torch.float8_e4m3fn)
    scale = torch.tensor([[0.01, 0.02], [0.03, 0.04]], dtype=torch.bfloat16)
    tensors, row = packed("FP8_BLOCK", torch.empty(200, 256), weight=codes, weight_scale=scale)
    result, idle = weight_contents(tensors, row)
    rows, columns = np.arange(200)[:, None] // 128, np.arange(256)[None] // 128
    weight = codes.double().numpy() * scale.double().numpy()[rows, columns]
    assert result.gain == pytest.approx(np.sqrt((weight**2).mean()) * 16)
    assert idle is not None
    assert idle.tolist() == [False] * 4


def test_a_code_that_is_not_a_number_is_counted() -> None:
    codes = torch.ones(128, 256).to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[3, 4] = 0x7F
    tensors, row = packed("FP8_DYNAMIC", codes, weight=codes, weight_scale=torch.ones(128, 1).bfloat16())
    assert weight_contents(tensors, row)[0].nonfinite == 1


def test_exponents_are_powers_of_two_and_255_is_none() -> None:
    values = scale_values(torch.tensor([[0, 126, 127, 130, 255]], dtype=torch.uint8))
    np.testing.assert_array_equal(values, [2.0**-127, 0.5, 1, 8, np.nan])


def test_plain_tensors_beside_numpy() -> None:
    values = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    contents = dense_contents(MemoryTensors({"t": values}), "m", "t")
    assert contents.gain == pytest.approx(np.sqrt((values.double().numpy() ** 2).mean()) * 8)
    assert (contents.constant, contents.zero, contents.nonfinite) == (False, False, 0)
    values[1, 2] = float("inf")
    assert dense_contents(MemoryTensors({"t": values}), "m", "t").nonfinite == 1
    assert dense_contents(MemoryTensors({"t": torch.zeros(4)}), "m", "t").zero


def test_units_that_engines_fuse() -> None:
    names = [f"l.0.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj", "o_proj")]
    names += [f"l.0.mlp.experts.{i}.{leaf}" for i in range(2) for leaf in ("gate_proj", "up_proj", "down_proj")]
    names += ["l.0.mlp.shared_expert.gate_proj", "l.0.mlp.shared_expert.up_proj"]
    units = fused_units(names)
    assert units == {
        "l.0.self_attn.qkv_proj": names[:3],
        "l.0.mlp.experts": names[4:10],
        "l.0.mlp.shared_expert.gate_up_proj": names[10:],
    }


def test_schemes_survive_their_text() -> None:
    scheme = preset_name_to_scheme("NVFP4", ["Linear"])
    again = QuantizationScheme.model_validate_json(scheme.model_dump_json())
    assert linear_forms(again, usual_format(again), (64, 64), torch.float16) == linear_forms(
        scheme, usual_format(scheme), (64, 64), torch.float16
    )
