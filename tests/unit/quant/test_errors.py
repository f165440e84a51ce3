"""Errors read from the histogram equal those of quantizing the whole tensor, computed here in float64 NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
from torch import Tensor

from quantaudit.quant.errors import TensorErrors, tensor_errors
from quantaudit.quant.observers import OBSERVERS, QParams, applies
from quantaudit.quant.schemes import FP8_E4M3, INT8, INT8_ASYMMETRIC, STATIC_INPUTS
from quantaudit.stats.distribution import zero
from tests.builders import distribution_of
from tests.unit.quant.tensors import DTYPES, SPREAD, TENSORS, extremes, qparams, tensor

PAIRS = [(form, observer) for form, args in STATIC_INPUTS.items() for observer in OBSERVERS if applies(observer, args)]


def decibel(signal: float, noise: float) -> float:
    if signal == 0:
        return math.nan
    return 10 * math.log10(signal / noise) if noise else math.inf


def direct(x: Tensor, actual: QParams, args: QuantizationArgs) -> dict[str, float]:
    """Every field but the clip rate, element by element."""
    restored = fake_quantize(x, actual.scale, actual.zero_point, args).double().numpy()
    codes = quantize(x, actual.scale, actual.zero_point, args).double().numpy()
    wide = x.double().numpy()
    error = wide - restored
    magnitude = np.abs(wide)
    median = float(np.quantile(magnitude, 0.5, method="inverted_cdf"))
    bulk = ~((magnitude > 100) & (magnitude > 1000 * median))
    share = np.unique(codes, return_counts=True)[1] / codes.size
    nonzero = wide != 0
    return {
        "sqnr_db": decibel((wide**2).sum(), (error**2).sum()),
        "bulk_sqnr_db": decibel((wide[bulk] ** 2).sum(), (error[bulk] ** 2).sum()),
        "relative_mae": np.abs(error).sum() / magnitude.sum() if magnitude.any() else 0.0,
        "zeroed_fraction": (restored[nonzero] == 0).mean() if nonzero.any() else 0.0,
        "effective_levels": 2 ** float(scipy.stats.entropy(share, base=2)),
    }


def clipped(x: Tensor, actual: QParams, args: QuantizationArgs, allowance: float) -> float:
    """Share of values with |x − x̂| > (1/2 + allowance)·scale at the ends of an INT8 grid, in real arithmetic."""
    code = x.double().numpy() / float(actual.scale) + float(actual.zero_point)
    return float((np.abs(code - np.clip(np.rint(code), -128, 127)) > 0.5 + allowance).mean())


def close(actual: TensorErrors, expected: dict[str, float], relative: float) -> None:
    for name, value in expected.items():
        assert getattr(actual, name) == pytest.approx(value, rel=relative, nan_ok=True), name


@pytest.mark.parametrize(("form", "observer"), PAIRS)
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_errors_of_a_16_bit_tensor_equal_a_direct_computation(dtype: str, name: str, form: str, observer: str) -> None:
    x, args = tensor(name, dtype), STATIC_INPUTS[form]
    actual = qparams(x, args, observer)
    close(tensor_errors(distribution_of(x), actual, args), direct(x, actual, args), 1e-6)


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("name", SPREAD)
def test_errors_on_other_data_than_the_scale_came_from_are_exact_too(name: str, form: str) -> None:
    """Calibration and evaluation differ: values beyond the range are clipped."""
    args = STATIC_INPUTS[form]
    actual = qparams(tensor("gaussian", "bfloat16"), args)
    x = tensor(name, "bfloat16") * 1.5
    close(tensor_errors(distribution_of(x), actual, args), direct(x, actual, args), 1e-6)


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("name", SPREAD)
def test_errors_of_a_float32_tensor_are_close(name: str, form: str) -> None:
    """The histogram holds it rounded to bfloat16; codes then move by at most one, rarely."""
    x, args = tensor(name, "float32"), STATIC_INPUTS[form]
    actual = qparams(x, args)
    ours, exact = tensor_errors(distribution_of(x), actual, args, extremes(x)), direct(x, actual, args)
    assert ours.sqnr_db == pytest.approx(exact["sqnr_db"], abs=1.0)
    assert ours.bulk_sqnr_db == pytest.approx(exact["bulk_sqnr_db"], abs=1.0)
    assert ours.relative_mae == pytest.approx(exact["relative_mae"], rel=0.1)
    assert ours.zeroed_fraction == pytest.approx(exact["zeroed_fraction"], abs=0.01)
    # Above a few quantization steps, bfloat16 values lie further apart than the codes.
    assert ours.effective_levels == pytest.approx(exact["effective_levels"], rel=0.15)


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nothing_is_clipped_under_absolute_maximum(dtype: str, name: str, form: str) -> None:
    x, args = tensor(name, dtype), STATIC_INPUTS[form]
    assert tensor_errors(distribution_of(x), qparams(x, args), args, extremes(x)).clip_rate == 0


@pytest.mark.parametrize("form", STATIC_INPUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_nothing_is_clipped_under_absolute_maximum_wherever_the_range_ends(dtype: str, form: str) -> None:
    """Scales round differently for every range; none of it may look like clipping."""
    args, generator = STATIC_INPUTS[form], torch.Generator().manual_seed(0)
    for _ in range(40):
        low, high = (torch.randn(2, generator=generator).abs() * 100).tolist()
        spread = torch.rand(300, generator=generator)
        tensors = [spread * high, spread * -low]
        # An asymmetric grid in 16 bits may round its zero point to the wrong side, which does clip.
        if args.symmetric or dtype == "float32":
            tensors.append(spread * (high + low) - low)
        for x in (x.to(DTYPES[dtype]) for x in tensors):
            assert tensor_errors(distribution_of(x), qparams(x, args), args, extremes(x)).clip_rate == 0


@pytest.mark.parametrize("observer", ["percentile_99.9", "mse"])
@pytest.mark.parametrize("args", [INT8, INT8_ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_clipped_is_an_error_above_half_a_step_at_the_end_of_the_grid(
    dtype: str, args: QuantizationArgs, observer: str
) -> None:
    """Only the rounding of the scale itself, at most 128 · eps / 2 of a step, is left to the arithmetic."""
    x = tensor("tails", dtype)
    actual = qparams(x, args, observer)
    rate = tensor_errors(distribution_of(x), actual, args).clip_rate
    strict, loose = (clipped(x, actual, args, allowance) for allowance in (1e-9, 128.5 * torch.finfo(x.dtype).eps / 2))
    assert loose <= rate <= strict
    assert rate > 0


def test_clipping_by_hand() -> None:
    """Scale 1: the grid ends at −128 and 127, so 127.5 still has half a step of error and 127.75 has more."""
    values = [0.0, 126.5, 127.0, 127.25, 127.75, 128.0, 300.0, -128.25, -128.75, -1000.0]
    actual = QParams(min=-127.5, max=127.5, scale=torch.tensor([1.0]), zero_point=torch.tensor([0], dtype=torch.int8))
    # Of these, bfloat16 holds 126.5, 127 and 128 exactly; float16 holds all.
    rate = tensor_errors(distribution_of(torch.tensor(values).half()), actual, INT8).clip_rate
    assert rate == pytest.approx(5 / len(values))


def test_fp8_clips_above_its_largest_value() -> None:
    actual = QParams(min=-448, max=448, scale=torch.tensor([1.0]), zero_point=torch.tensor([0], dtype=torch.int8))
    x = torch.tensor([447.0, 448.0, 464.0, -448.0, -512.0, 1.0]).half()
    assert tensor_errors(distribution_of(x), actual, FP8_E4M3).clip_rate == pytest.approx(2 / 6)


def test_uniform_codes_use_every_level() -> None:
    x = torch.arange(-128, 128).float().half()
    actual = QParams(min=-127.5, max=127.5, scale=torch.tensor([1.0]), zero_point=torch.tensor([0], dtype=torch.int8))
    errors = tensor_errors(distribution_of(x), actual, INT8)
    assert errors.effective_levels == pytest.approx(256)
    assert errors.sqnr_db == math.inf
    assert errors.clip_rate == 0
    assert errors.zeroed_fraction == 0


def test_sqnr_alone_hides_what_the_other_errors_show() -> None:
    """One massive value sets the scale: every ordinary value becomes zero, and SQNR looks excellent."""
    x = tensor("massive outlier", "bfloat16")
    errors = tensor_errors(distribution_of(x), qparams(x, INT8), INT8)
    assert errors.sqnr_db > 30
    assert errors.zeroed_fraction > 0.99
    assert errors.bulk_sqnr_db < 3
    assert errors.relative_mae > 0.5
    assert errors.effective_levels < 2


def test_non_finite_values_do_not_enter_errors() -> None:
    x = tensor("gaussian", "bfloat16")
    actual = qparams(x, INT8)
    broken = torch.cat([x, torch.tensor([math.nan, math.inf, -math.inf]).bfloat16()])
    assert tensor_errors(distribution_of(broken), actual, INT8) == tensor_errors(distribution_of(x), actual, INT8)


def test_an_empty_tensor_has_no_errors_to_speak_of() -> None:
    actual = qparams(tensor("gaussian", "bfloat16"), INT8_ASYMMETRIC)
    errors = tensor_errors(zero("bfloat16"), actual, INT8_ASYMMETRIC)
    assert all(math.isnan(getattr(errors, name)) for name in TensorErrors.__slots__)
