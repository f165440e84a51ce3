"""The simulation of a Linear against optimum-quanto, which multiplies integers: another implementation of the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn

from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8, INT8_PER_CHANNEL, INT8_STATIC
from quantaudit.simulate.quantized.modules import input_quantizer, quantize_weight, quantized

quanto = pytest.importorskip("optimum.quanto")


def make(inputs: int, outputs: int, *, bias: bool, seed: int) -> nn.Module:
    """A model of one Linear at `layer`."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.layer = nn.Linear(inputs, outputs, bias=bias)
    return model


def static(x: Tensor) -> QParams:
    """Symmetric INT8 over the whole range of x."""
    low, high = x.amin().reshape(1), x.amax().reshape(1)
    scale, zero_point = calculate_qparams(low, high, INT8)
    return QParams(min=float(low), max=float(high), scale=scale, zero_point=zero_point)


def integer_kernel(linear: nn.Linear, qparams: QParams, x: Tensor) -> Tensor:
    """The same Linear in quanto: weights and input as INT8 codes at our scales, multiplied as integers."""
    from optimum.quanto.tensor import ActivationQBytesTensor
    from optimum.quanto.tensor import quantize_weight as quanto_weight

    low, high = linear.weight.amin(1, keepdim=True), linear.weight.amax(1, keepdim=True)
    scale, _ = calculate_qparams(low, high, INT8_PER_CHANNEL)
    module: Any = quanto.QLinear.from_module(linear, weights=quanto.qint8, activations=quanto.qint8)
    weight = quanto_weight(
        linear.weight.detach(), qtype=quanto.qint8, axis=0, scale=scale, activation_qtype=quanto.qint8
    )
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.input_scale = qparams.scale.reshape(())
    module.disable_output_quantization()
    inputs: list[Any] = []
    module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    result: Tensor = module(x)
    assert isinstance(inputs[0], ActivationQBytesTensor)
    assert inputs[0]._data.dtype == weight._data.dtype == torch.int8
    return result


def calls_to_the_integer_kernel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Size, torch.Size]]:
    """Shapes of every product that quanto computes on integers."""
    from optimum.quanto.library import qbytes_mm

    calls: list[tuple[torch.Size, torch.Size]] = []
    plain: Callable[..., Tensor] = torch._int_mm

    def record(a: Tensor, b: Tensor) -> Tensor:
        assert a.dtype == b.dtype == torch.int8
        calls.append((a.shape, b.shape))
        return plain(a, b)

    monkeypatch.setattr(qbytes_mm.torch, "_int_mm", record)
    return calls


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("peak", [1.0, 40.0], ids=["plain", "outlier"])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 32), (256, 128), (512, 64)])
def test_a_simulated_linear_is_quantos_integer_kernel(
    inputs: int, outputs: int, peak: float, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(inputs, outputs, bias=bias, seed=inputs + outputs)
    linear: Any = model.layer
    x = torch.randn(2, 24, inputs, generator=torch.Generator().manual_seed(1))
    x[0, 3, 5] *= 10 * peak
    qparams = static(x)

    group = Group(name="layer", projection="layer", layer=0, members=("layer",))
    weights = {"layer": quantize_weight(linear.weight.detach(), INT8_PER_CHANNEL)}
    with torch.no_grad():
        plain = linear(x)
        with quantized(model, [group], weights, {"layer": input_quantizer(INT8_STATIC, qparams, x.device)}):
            simulated = linear(x)
        calls = calls_to_the_integer_kernel(monkeypatch)
        expected = integer_kernel(linear, qparams, x)
    assert calls
    assert float((simulated - expected).norm() / expected.norm()) < 1e-6
    # That is no accident of a scheme that changes nothing: quantization itself is thousands of times larger.
    assert float((simulated - plain).norm() / plain.norm()) > 1e-3


def test_the_codes_are_the_same_at_every_rounding_edge() -> None:
    """Halves round to even in both, and −128 is a code of both grids."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from optimum.quanto.tensor import quantize_activation

    scale = torch.tensor([0.5])
    x = (torch.arange(-300, 301) / 4).reshape(1, -1)
    ours = fake_quantize(x, scale, torch.zeros(1, dtype=torch.int8), INT8)
    theirs = quantize_activation(x, qtype=quanto.qint8, scale=scale.reshape(())).dequantize()
    assert torch.equal(ours, theirs)
    assert float(ours.min()) == -64.0
