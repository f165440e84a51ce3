"""The fast ways give compressed-tensors' own result, to the last bit, on every value there is."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp, generate_gparam
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4

from quantaudit.quant.lookup import FP4_E2M1, FP8_E4M3, StaticTable, dynamic_scales, fake_quantize_rows, round_to_float
from quantaudit.quant.schemes import MXFP4, NVFP4, STATIC_INPUTS, Scheme

DTYPES = (torch.bfloat16, torch.float16)
RANGES = ((-3.0, 7.0), (0.0, 3000.0), (-0.02, 0.01))


def patterns(dtype: torch.dtype) -> torch.Tensor:
    """All values of a 16-bit type, NaN and infinities too."""
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    a_wide, b_wide = (x.double().nan_to_num(12345.0) for x in (a, b))
    return a.dtype == b.dtype and torch.equal(a_wide, b_wide)


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bounds", RANGES)
def test_a_static_scale_on_every_16_bit_value(bounds: tuple[float, float], dtype: torch.dtype, form: str) -> None:
    args, x = STATIC_INPUTS[form], patterns(dtype)
    scale, zero_point = calculate_qparams(*(torch.tensor([bound], dtype=dtype) for bound in bounds), args)
    expected = fake_quantize(x, scale, zero_point, args)
    assert same(fake_quantize_rows(x, scale, zero_point, args), expected)
    shuffled = torch.randperm(1 << 16, generator=torch.Generator().manual_seed(0))
    table = StaticTable(scale, zero_point, args, dtype)
    assert same(table(x[shuffled].view(64, 1024)), expected[shuffled].view(64, 1024))
    assert same(table(x.view(64, 1024).T), expected.view(64, 1024).T)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
def test_a_scale_for_each_row_of_a_weight(dtype: torch.dtype, symmetric: bool, kind: str) -> None:
    args = QuantizationArgs(num_bits=8, type=kind, strategy="channel", symmetric=symmetric or kind == "float")
    weight = (torch.randn(40, 33, generator=torch.Generator().manual_seed(1)) * 0.1).to(dtype)
    weight[0] = 0
    actual = calculate_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), args)
    expected = fake_quantize(weight, *actual, args)
    assert same(fake_quantize_rows(weight, *actual, args), expected)
    assert not same(expected, weight)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32])
def test_a_scale_for_each_token(dtype: torch.dtype, bits: int, symmetric: bool) -> None:
    args = QuantizationArgs(num_bits=bits, strategy="token", dynamic=True, symmetric=symmetric)
    x = (torch.randn(3, 50, 33, generator=torch.Generator().manual_seed(bits)) * 9).to(dtype)
    x[0, 0] = 0
    actual = compute_dynamic_scales_and_zp(x, args, module=None)
    assert same(fake_quantize_rows(x, *actual, args), fake_quantize(x, *actual, args))
    for ours, theirs in zip(dynamic_scales(x, args), actual, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_for_a_token_of_every_16_bit_magnitude(dtype: torch.dtype, kind: str) -> None:
    args = QuantizationArgs(num_bits=8, type=kind, strategy="token", symmetric=True, dynamic=True)
    x = patterns(dtype).view(1, -1, 1)
    for ours, theirs in zip(dynamic_scales(x, args), compute_dynamic_scales_and_zp(x, args, module=None), strict=True):
        assert same(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scheme", [NVFP4, MXFP4], ids=lambda scheme: scheme.name)
def test_fp4_in_groups(scheme: Scheme, dtype: torch.dtype) -> None:
    args = scheme.weights
    assert args is not None
    x = (torch.randn(12, 128, generator=torch.Generator().manual_seed(0)) * 5).to(dtype)
    x[0] = torch.arange(128) / 16  # ties among them
    whole = generate_gparam(-x.abs().amax().float().reshape(1), x.abs().amax().float().reshape(1))
    shared = whole if scheme is NVFP4 else None
    scale, zero_point = compute_dynamic_scales_and_zp(x, args, None, shared)
    restored = fake_quantize_rows(x, scale, zero_point, args, shared)
    assert torch.equal(restored, fake_quantize(x, scale, zero_point, args, global_scale=shared))
    assert restored.dtype == dtype


def test_fp4_rounds_as_compressed_tensors_does_at_every_tie_and_next_to_it() -> None:
    codes = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 1e-30, 9e9])
    near = torch.cat([codes, *(torch.nextafter(codes, torch.tensor(end)) for end in (9e9, -9e9))])
    x = torch.cat([near, -near, torch.tensor([float("nan")])])
    expected = cast_to_fp4(x.clamp(-6, 6))
    assert torch.equal(torch.nan_to_num(round_to_float(x.clone(), FP4_E2M1), 7.0), torch.nan_to_num(expected, 7.0))


def test_fp8_rounds_as_torch_converts_every_16_bit_number() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype).float()
        expected = x.clamp(-448, 448).to(torch.float8_e4m3fn).float()
        assert torch.equal(torch.nan_to_num(round_to_float(x.clone(), FP8_E4M3), 7.0), torch.nan_to_num(expected, 7.0))
