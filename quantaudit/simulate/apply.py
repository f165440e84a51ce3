"""Runs Linears as if they were quantized, for as long as a context lasts, with compressed_tensors' own arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from compressed_tensors.offload import disable_onloading
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp
from torch import Tensor, nn

from quantaudit.model.sites import Group
from quantaudit.quant.scales import QParams
from quantaudit.quant.schemes import Scheme

InputQuantizer = Callable[[Tensor], Tensor]


def quantize_weight(weight: Tensor, args: QuantizationArgs) -> Tensor:
    """Fake-quantized copy of a weight [out, in], one scale for each output channel, in the weight's own dtype."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale, zero_point = calculate_qparams(low, high, args)
    quantized: Tensor = fake_quantize(weight, scale, zero_point, args)
    return quantized


def quantize_linear(linear: nn.Module, args: QuantizationArgs) -> Tensor:
    """Fake-quantized copy of a Linear's weight, in its own layout: transformers' Conv1D keeps [in, out]."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    if isinstance(linear, nn.Linear):
        return quantize_weight(weight, args)
    return quantize_weight(weight.T.contiguous(), args).T.contiguous()


def input_quantizer(scheme: Scheme, qparams: QParams | None, device: torch.device) -> InputQuantizer | None:
    """What the inputs of one fused group go through; None where the scheme leaves activations alone."""
    args = scheme.input_activations
    if args is None:
        return None
    if args.dynamic:
        return _once(lambda x: _dynamic(x, args))
    if qparams is None:
        raise ValueError("a static scheme needs quantization parameters")
    scale, zero_point = qparams.scale.to(device), qparams.zero_point.to(device)
    return _once(lambda x: fake_quantize(x, scale, zero_point, args))


@contextmanager
def quantized(
    model: nn.Module,
    groups: Sequence[Group],
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, InputQuantizer | None],
) -> Iterator[None]:
    """Within the context, members of `groups` use `weights` (by module path) and `inputs` (by group name)."""
    with ExitStack() as stack:
        for group in groups:
            quantizer = inputs.get(group.name)
            for member in group.members:
                linear = model.get_submodule(member)
                if member in weights:
                    _swap_weight(stack, linear, weights[member])
                if quantizer is not None:
                    stack.callback(linear.register_forward_pre_hook(_pre_hook(quantizer)).remove)
        yield


def _swap_weight(stack: ExitStack, linear: nn.Module, weight: Tensor) -> None:
    # The parameter object is exchanged, not its data: a tied embedding must keep the original.
    with disable_onloading():
        original = linear._parameters["weight"]
    _assign(linear, nn.Parameter(weight, requires_grad=False))
    stack.callback(_assign, linear, original)


def _assign(linear: nn.Module, weight: Tensor | None) -> None:
    # Linearized experts keep their parameters in a cache of compressed_tensors, where a plain assignment would copy
    # the new values into the original.
    with disable_onloading():
        linear._parameters["weight"] = weight  # type: ignore[assignment]


def _pre_hook(quantizer: InputQuantizer) -> Callable[..., Any]:
    return lambda _module, args: (quantizer(args[0]), *args[1:])


def _once(quantize: InputQuantizer) -> InputQuantizer:
    """Quantize a tensor that several Linears of a fused group read only once."""
    last: list[tuple[Tensor, Tensor]] = []

    def quantizer(x: Tensor) -> Tensor:
        if not last or last[0][0] is not x:
            last[:] = [(x, quantize(x))]
        return last[0][1]

    return quantizer


def _dynamic(x: Tensor, args: QuantizationArgs) -> Tensor:
    # compute_dynamic_scales_and_zp takes the first two axes for batch and token; flattened tokens lack the first.
    rows = x if x.ndim > 2 else x.unsqueeze(0)
    restored: Tensor = fake_quantize(rows, *compute_dynamic_scales_and_zp(rows, args, module=None), args)
    return restored.reshape(x.shape)
