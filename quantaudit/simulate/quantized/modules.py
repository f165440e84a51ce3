"""Runs Linears as if they were quantized, for as long as a context lasts, with the arithmetic of compressed_tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from weakref import ref

import torch
from compressed_tensors.offload import disable_onloading
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy
from torch import Tensor, nn

from quantaudit.model.forward.hooks import InputChange, replace_inputs
from quantaudit.model.sites import Group
from quantaudit.quant.lookup import StaticTable, dynamic_scales, fake_quantize_rows
from quantaudit.quant.observers import QParams, in_dtype
from quantaudit.quant.schemes import Scheme
from quantaudit.quant.weights import quantize_linear, quantize_weight

__all__ = [
    "InputQuantizer",
    "copied_parameters",
    "input_quantizer",
    "quantize_linear",
    "quantize_weight",
    "quantized",
    "quantized_modules",
]

InputQuantizer = Callable[[Tensor], Tensor]


def input_quantizer(
    scheme: Scheme,
    qparams: QParams | None,
    device: torch.device,
    *,
    factor: Tensor | None = None,
    table: bool = True,
) -> InputQuantizer | None:
    """What the inputs of one fused group go through; None where they are left alone.

    factor: [in], what channels are divided by first, as smoothing has it. table: whether a static scale may be looked
    up, for speed at the cost of 128 KiB.
    """
    quantize = _quantizer(scheme, qparams, device, table)
    if factor is None:
        return None if quantize is None else _memoized_by_input(quantize)
    return _memoized_by_input(lambda x: (quantize or _unchanged)((x / factor).to(x.dtype)))


@contextmanager
def quantized_modules(
    model: nn.Module, weights: Mapping[str, Tensor], inputs: Mapping[str, InputQuantizer | None]
) -> Iterator[None]:
    """Within the context, Linears use `weights` and `inputs`, both by module path."""
    with ExitStack() as stack:
        for path, weight in weights.items():
            _swap_weight(stack, model.get_submodule(path), weight)
        for path, quantizer in inputs.items():
            if quantizer is not None:
                stack.enter_context(replace_inputs(model.get_submodule(path), _quantizing_hook(quantizer)))
        yield


@contextmanager
def quantized(
    model: nn.Module,
    groups: Sequence[Group],
    weights: Mapping[str, Tensor],
    inputs: Mapping[str, InputQuantizer | None],
) -> Iterator[None]:
    """Within the context, members of `groups` use `weights` (by module path) and `inputs` (by group name)."""
    members = {member: group.name for group in groups for member in group.members}
    inside = {path: weight for path, weight in weights.items() if path in members}
    with quantized_modules(model, inside, {member: inputs.get(name) for member, name in members.items()}):
        yield


@contextmanager
def copied_parameters(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Within the context the modules at `paths` hold copies of their parameters, which may be changed in place.

    A parameter that several modules share is copied once and shared again, whether or not all of them are at `paths`.
    """
    with disable_onloading():
        copied = {id(p) for path in paths for p in model.get_submodule(path)._parameters.values() if p is not None}
        held = [
            (module, name, parameter)
            for module in model.modules()
            for name, parameter in module._parameters.items()
            if id(parameter) in copied and parameter is not None
        ]
    copies: dict[int, nn.Parameter] = {}
    with ExitStack() as stack:
        for module, name, original in held:
            if id(original) not in copies:
                copies[id(original)] = nn.Parameter(original.detach().clone(), requires_grad=False)
            _assign(module, copies[id(original)], name)
            stack.callback(_assign, module, original, name)
        yield


def _swap_weight(stack: ExitStack, linear: nn.Module, weight: Tensor) -> None:
    # The parameter object is exchanged, not its data: a tied embedding must keep the original.
    with disable_onloading():
        original = linear._parameters["weight"]
    _assign(linear, nn.Parameter(weight, requires_grad=False))
    stack.callback(_assign, linear, original)


def _assign(module: nn.Module, value: Tensor | None, name: str = "weight") -> None:
    # Linearized experts keep their parameters in a cache of compressed_tensors, where a plain assignment would copy
    # the new values into the original.
    with disable_onloading():
        module._parameters[name] = value  # type: ignore[assignment]


def _quantizer(scheme: Scheme, qparams: QParams | None, device: torch.device, table: bool) -> InputQuantizer | None:
    args = scheme.input_activations
    if args is None:
        return None
    if args.dynamic is True:
        return lambda x: _dynamic(x, args)
    if qparams is None:
        raise ValueError("a static scheme needs quantization parameters")
    if qparams.global_scale is not None:
        whole = qparams.global_scale.to(device)
        return lambda x: _dynamic(x, args, whole)
    return _static_quantizer(qparams, args, device, table)


def _unchanged(x: Tensor) -> Tensor:
    return x


def _quantizing_hook(quantizer: InputQuantizer) -> InputChange:
    return lambda _module, args, kwargs: ((quantizer(args[0]), *args[1:]), kwargs)


def _memoized_by_input(quantize: InputQuantizer) -> InputQuantizer:
    """Quantize a tensor that several Linears of a fused group read only once.

    The result is forgotten with the tensor: a plan holds a quantizer for every group, and would hold all their inputs.
    """
    last: list[tuple[ref[Tensor], Tensor]] = []

    def forget(dead: ref[Tensor]) -> None:
        if last and last[0][0] is dead:
            last.clear()

    def quantizer(x: Tensor) -> Tensor:
        if last and last[0][0]() is x:
            return last[0][1]
        restored = quantize(x)
        last[:] = [(ref(x, forget), restored)]
        return restored

    return quantizer


def _static_quantizer(qparams: QParams, args: QuantizationArgs, device: torch.device, table: bool) -> InputQuantizer:
    """One scale for the whole tensor, in the tensor's dtype, determined on the first use; so is the table."""
    grids: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
    tables: dict[torch.dtype, StaticTable] = {}

    def quantize(x: Tensor) -> Tensor:
        if x.dtype not in grids:
            rounded = in_dtype(qparams, x.dtype, args)
            grids[x.dtype] = rounded.scale.to(device), rounded.zero_point.to(device)
        if not table or x.dtype not in (torch.bfloat16, torch.float16) or x.device != device:
            return fake_quantize_rows(x, *grids[x.dtype], args)
        if x.dtype not in tables:
            tables[x.dtype] = StaticTable(*grids[x.dtype], args, x.dtype)
        return tables[x.dtype](x)

    return quantize


def _dynamic(x: Tensor, args: QuantizationArgs, global_scale: Tensor | None = None) -> Tensor:
    """x [..., channels] under scales of its values, for tokens, groups of channels or the tensor, as at run time."""
    if not x.numel():
        return x
    # compressed_tensors takes the first two axes for batch and token; flattened tokens lack the first.
    rows = x.unsqueeze(0) if x.ndim == 2 and args.strategy == QuantizationStrategy.TOKEN else x
    scale, zero_point = dynamic_scales(rows, args, global_scale)
    return fake_quantize_rows(rows, scale, zero_point, args, global_scale).reshape(x.shape)
