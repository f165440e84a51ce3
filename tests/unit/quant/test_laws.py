"""Laws that any sensible quantization error obeys, over random Gaussian and heavy-tailed float32 tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quantaudit.quant.errors import tensor_errors
from quantaudit.quant.observers import OBSERVERS, applies
from quantaudit.quant.schemes import INT8, INT8_PER_CHANNEL, INT8_PER_TOKEN, STATIC_INPUTS, Scheme
from quantaudit.quant.weights import quantize_weight
from quantaudit.simulate.quantized.modules import input_quantizer
from quantaudit.simulate.replay.replay_groups import block_damage
from tests.builders import distribution_of
from tests.unit.quant.tensors import extremes, qparams

BITS = range(2, 9)
LUCK = 1.05
"""What rounding luck may give the coarser scale; with thousands of values it stays far below."""


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """float32 [tokens, channels], at least 4,096 values: Gaussian, Student's t or log-normal, outliers in some rows."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(64, 64), (16, 320), (300, 32)]))
    kind = draw(st.sampled_from(["gaussian", "student", "lognormal"]))
    if kind == "gaussian":
        x = generator.standard_normal(shape)
    elif kind == "student":
        x = generator.standard_t(draw(st.sampled_from([2.0, 3.0])), shape)
    else:
        x = generator.lognormal(0, 1.5, shape) * generator.choice([-1, 1], shape)
    x[0] *= draw(st.sampled_from([1.0, 30.0]))
    x[:, 1] *= draw(st.sampled_from([1.0, 10.0]))
    return torch.from_numpy(x * 10.0 ** draw(st.integers(-3, 3))).float()


def restored(x: Tensor, args: QuantizationArgs) -> Tensor:
    """x̂ as a simulated Linear would read it."""
    scheme = Scheme(name="s", title="s", weights=None, input_activations=args, observer="absolute_maximum")
    quantizer = input_quantizer(scheme, qparams(x, args) if scheme.static else None, x.device)
    assert quantizer is not None
    return quantizer(x)


def relative_error(x: Tensor, changed: Tensor) -> float:
    """Σ(x − x̂)² / Σx², in float64."""
    return float((changed.double() - x.double()).square().sum() / x.double().square().sum())


def token_error(x: Tensor, changed: Tensor) -> float:
    """Mean over tokens of ‖Δx‖² / ‖x‖², which damage is made of."""
    return float(block_damage(x[None], changed[None])) / len(x)


def in_bits(args: QuantizationArgs, bits: int) -> QuantizationArgs:
    return args.model_copy(update={"num_bits": bits})


@given(tensors(), st.sampled_from([INT8, INT8_PER_TOKEN]), st.booleans())
def test_more_bits_never_raise_the_error(x: Tensor, args: QuantizationArgs, symmetric: bool) -> None:
    args = args.model_copy(update={"symmetric": symmetric})
    errors = [relative_error(x, restored(x, in_bits(args, bits))) for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@given(tensors())
def test_more_bits_never_raise_a_weights_error(x: Tensor) -> None:
    grouped = QuantizationArgs(num_bits=8, strategy="group", group_size=32)
    for args in (INT8_PER_CHANNEL, grouped):
        errors = [relative_error(x, quantize_weight(x, in_bits(args, bits))) for bits in BITS]
        assert errors == sorted(errors, reverse=True)


@given(tensors(), st.sampled_from(list(BITS)), st.booleans())
def test_a_scale_for_each_token_is_no_worse_than_one_for_all(x: Tensor, bits: int, symmetric: bool) -> None:
    static, dynamic = (
        restored(x, in_bits(args, bits).model_copy(update={"symmetric": symmetric})) for args in (INT8, INT8_PER_TOKEN)
    )
    assert relative_error(x, dynamic) <= LUCK * relative_error(x, static)
    assert token_error(x, dynamic) <= LUCK * token_error(x, static)


@given(tensors(), st.integers(-20, 20), st.sampled_from([INT8, INT8_PER_TOKEN]), st.booleans(), st.sampled_from(BITS))
def test_scaling_by_a_power_of_two_changes_no_relative_error(
    x: Tensor, power: int, args: QuantizationArgs, symmetric: bool, bits: int
) -> None:
    args = in_bits(args, bits).model_copy(update={"symmetric": symmetric})
    scaled = x * 2.0**power
    assert torch.equal(restored(scaled, args), restored(x, args) * 2.0**power)
    assert relative_error(scaled, restored(scaled, args)) == relative_error(x, restored(x, args))


@given(tensors(), st.integers(-8, 8), st.sampled_from(sorted(STATIC_INPUTS)), st.sampled_from(sorted(OBSERVERS)))
@settings(max_examples=20)
def test_scaling_by_a_power_of_two_changes_no_error_of_the_histogram(
    x: Tensor, power: int, form: str, observer: str
) -> None:
    args = STATIC_INPUTS[form]
    if not applies(observer, args):
        return
    actual = [
        tensor_errors(distribution_of(tensor), qparams(tensor, args, observer), args, extremes(tensor))
        for tensor in (x, x * 2.0**power)
    ]
    # What makes an activation massive is an absolute size, so the bulk may differ; nothing else may.
    for name in ("sqnr_db", "relative_mae", "zeroed_fraction", "effective_levels", "clip_rate"):
        assert getattr(actual[0], name) == pytest.approx(getattr(actual[1], name), rel=1e-12, abs=1e-12), name


@given(tensors(), st.sampled_from([INT8, INT8_PER_TOKEN]), st.sampled_from(BITS))
def test_damage_is_zero_when_the_quantized_tensor_is_the_tensor(x: Tensor, args: QuantizationArgs, bits: int) -> None:
    assert token_error(x, x.clone()) == 0
    static = INT8.model_copy(update={"num_bits": bits})
    scale = qparams(x, static).scale
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), x.shape, generator=torch.Generator().manual_seed(bits))
    on_grid = codes * scale
    scheme = Scheme(name="s", title="s", weights=None, input_activations=static, observer="absolute_maximum")
    quantizer = input_quantizer(scheme, qparams(x, static), x.device)
    assert quantizer is not None
    assert token_error(on_grid, quantizer(on_grid)) == 0


@given(tensors(), st.sampled_from(sorted(STATIC_INPUTS)))
@settings(max_examples=20)
def test_errors_of_the_histogram_and_of_the_tensor_agree(x: Tensor, form: str) -> None:
    """Exactly for a tensor that bfloat16 holds, and in float32 up to the histogram's rounding."""
    args = STATIC_INPUTS[form]
    for tensor, tolerance in ((x.bfloat16(), 1e-6), (x, 0.15)):
        actual = tensor_errors(distribution_of(tensor), qparams(tensor, args), args, extremes(tensor))
        direct = relative_error(tensor, restored(tensor, args))
        assert 10 ** (-actual.sqnr_db / 10) == pytest.approx(direct, rel=tolerance)
