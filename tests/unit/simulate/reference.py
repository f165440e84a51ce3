"""Quantized models written a second time: weights replaced in a copy, inputs quantized by hooks of the tests' alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from torch import Tensor, nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.sites import Architecture, Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.schemes import INT8_DYNAMIC, INT8_STATIC, Scheme
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.records import GroupRow
from quantaudit.simulate.replay.backward_pass import record_forward
from quantaudit.simulate.replay.linear_sensitivity import PriceList
from quantaudit.simulate.replay.replay_groups import replay_groups
from quantaudit.simulate.sensitivity import prices

WEIGHTS_ONLY = Scheme(
    name="weights_only", title="weights only", weights=INT8_STATIC.weights, input_activations=None, observer=None
)
INPUTS_ONLY = Scheme(
    name="inputs_only",
    title="inputs only",
    weights=None,
    input_activations=INT8_STATIC.input_activations,
    observer="absolute_maximum",
)
NOTHING = Scheme(name="nothing", title="nothing", weights=None, input_activations=None, observer=None)
ALL = (INT8_STATIC, INT8_DYNAMIC, WEIGHTS_ONLY, INPUTS_ONLY, NOTHING)


def run(model: nn.Module, sample: TokenizedSample) -> Tensor:
    """Logits [tokens, vocabulary] of one sample."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.from_numpy(sample.ids)[None], use_cache=False).logits[0]
    return logits


def ranges(model: nn.Module, groups: Sequence[Group], samples: Iterable[TokenizedSample]) -> dict[str, QParams | None]:
    """Static parameters of every group from the inputs that it sees on these samples."""
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    handles = []
    for group in groups:

        def watch(_module: nn.Module, args: Any, name: str = group.name) -> None:
            x = args[0]
            low[name] = torch.minimum(low.get(name, x.min()), x.min())
            high[name] = torch.maximum(high.get(name, x.max()), x.max())

        handles.append(model.get_submodule(group.members[0]).register_forward_pre_hook(watch))
    for sample in samples:
        run(model, sample)
    for handle in handles:
        handle.remove()
    assert INT8_STATIC.input_activations is not None
    qparams: dict[str, QParams | None] = {}
    for group in groups:
        a, b = low[group.name].reshape(1), high[group.name].reshape(1)
        scale, zero_point = calculate_qparams(a, b, INT8_STATIC.input_activations)
        qparams[group.name] = QParams(min=float(a), max=float(b), scale=scale, zero_point=zero_point)
    return qparams


def by_scheme(
    qparams: Mapping[str, QParams | None], schemes: Sequence[Scheme] = ALL
) -> dict[str, Mapping[str, QParams | None]]:
    """The same ranges for every scheme."""
    return {scheme.name: qparams for scheme in schemes}


def quantized_copy(
    model: nn.Module, groups: Iterable[Group], schemes: Mapping[str, Scheme], qparams: Mapping[str, QParams | None]
) -> nn.Module:
    """A copy in which the groups named by `schemes` are quantized for good."""
    changed = copy.deepcopy(model)
    for group in groups:
        scheme = schemes.get(group.name)
        for member in group.members if scheme else ():
            linear = changed.get_submodule(member)
            if scheme and scheme.weights is not None:
                linear.weight = nn.Parameter(_rows(linear.weight.detach(), scheme.weights))
            if scheme and scheme.input_activations is not None:
                linear.register_forward_pre_hook(_input_hook(scheme.input_activations, qparams.get(group.name)))
    return changed


def _rows(x: Tensor, args: QuantizationArgs) -> Tensor:
    """Every row with a symmetric scale each, one row at a time."""
    per_tensor = args.model_copy(update={"strategy": "tensor", "dynamic": False})
    restored = []
    for row in x.reshape(-1, x.shape[-1]):
        scale, zero_point = calculate_qparams(row.min().reshape(1), row.max().reshape(1), per_tensor)
        restored.append(fake_quantize(row, scale, zero_point, per_tensor))
    return torch.stack(restored).reshape(x.shape)


def _input_hook(args: QuantizationArgs, qparams: QParams | None) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if args.dynamic:
            return (_rows(inputs[0], args), *inputs[1:])
        assert qparams is not None
        return (fake_quantize(inputs[0], qparams.scale, qparams.zero_point, args), *inputs[1:])

    return hook


def experiment(
    model: nn.Module,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme] = (),
    qparams: Mapping[str, Mapping[str, QParams | None]] | None = None,
) -> Experiment:
    """An experiment with these ranges, by scheme name, then by group name."""
    ranges = InputRanges(by_scheme=qparams or {})
    return Experiment(model=model, architecture=architecture, samples=samples, schemes=schemes, ranges=ranges)


def damage_rows(
    model: nn.Module,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    progress: Advance = no_advance,
    **options: Any,
) -> list[GroupRow]:
    """Replays after forward passes alone."""
    what = experiment(model, architecture, samples, schemes, qparams)
    return [effect.to_row() for effect in replay_groups(what, record_forward(what), progress, **options)]


def price_groups(
    model: nn.Module,
    architecture: Architecture,
    samples: Sequence[TokenizedSample],
    schemes: Sequence[Scheme],
    qparams: Mapping[str, Mapping[str, QParams | None]],
    **options: Any,
) -> PriceList:
    """Prices from gradients."""
    return prices.price_groups(experiment(model, architecture, samples, schemes, qparams), **options)
