"""Checkpoints that compressed-tensors wrote: llm-compressor's output, as vLLM loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.utils import calculate_range
from numpy.typing import NDArray

from quantaudit.conform.artifacts.expected import contract_of, fulfils
from quantaudit.conform.artifacts.records import (
    Artifact,
    Checkpoint,
    DenseContents,
    InputRange,
    OtherScale,
    WeightContents,
)
from quantaudit.conform.artifacts.tensors import Tensors, TensorSource, epsilons, scalar
from quantaudit.conform.configuration import METHOD, Configuration
from quantaudit.conform.contents import dense_contents, other_scale, weight_contents
from quantaudit.conform.contract import FLOATS
from quantaudit.provenance import ModuleInfo

AVERAGING = ("minmax", "mse")
"""Observers of llm-compressor whose ranges are averages over calibration batches: they clip the highest peaks."""
SCALES = frozenset(f"{base}_{kind}" for base in "qkv" for kind in ("scale", "global_scale")) | {"output_scale"}
"""Leaves of scales that are held against what scales can be even where no scheme calls for them."""
NVFP4_RANGE = 448.0 * 6.0
"""What a global scale spreads the largest magnitude over: largest FP8 scale times largest FP4 code."""


def read_compressed(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], modules: Sequence[ModuleInfo]
) -> Artifact:
    """A checkpoint folder and its contract. config: its config.json; settings: the quantization_config in it.

    modules: of the model that the card is about.

    Raises ModelError where a file cannot be read, or the configuration is none that compressed-tensors understands.
    """
    tensors = Tensors(folder, config)
    return compressed_artifact(tensors, config, settings, modules, str(folder), lost=tensors.lost)


def compressed_artifact(
    tensors: TensorSource,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    modules: Sequence[ModuleInfo],
    path: str,
    *,
    lost: tuple[str, ...] = (),
) -> Artifact:
    """The same of tensors that lie anywhere. Raises ModelError."""
    checkpoint = contract_of(tensors, config, settings, modules, path, lost)
    inputs = list(_inputs(checkpoint))
    weights, others, dense = _contents(checkpoint, {row.tensor for row in inputs})
    checkpoint.weights.extend(weights)
    checkpoint.dense.extend(dense)
    return Artifact(
        kind=METHOD,
        path=path,
        weights={},
        inputs=inputs,
        others=others,
        dynamic=[
            name
            for name, row in checkpoint.quantized.items()
            if row.scheme.input_activations is not None
            and row.scheme.input_activations.dynamic
            and f"{row.saved}.input_global_scale" not in checkpoint.expected
        ],
        checkpoint=checkpoint,
        config=config,
    )


def _inputs(checkpoint: Checkpoint) -> Iterable[InputRange]:
    """Static ranges of inputs, those under a global scale as well, and those of modules that the card does not know."""
    for module in checkpoint.quantized.values():
        args = module.scheme.input_activations
        if args is None or args.dynamic is True:
            continue
        for leaf in ("input_scale", "input_global_scale"):
            if leaf in module.forms:
                yield from _input_range(checkpoint.tensors, module.module, module.saved, leaf, args)
    names = set(checkpoint.saved.values())
    for name in checkpoint.tensors:
        stem, _, leaf = name.rpartition(".")
        if leaf == "input_scale" and stem not in names:
            yield from _input_range(checkpoint.tensors, stem, stem, leaf, _any(checkpoint.configuration))


def _input_range(
    tensors: TensorSource, module: str, saved: str, leaf: str, args: QuantizationArgs
) -> Iterable[InputRange]:
    name, zero = f"{saved}.{leaf}", f"{saved}.input_zero_point"
    dtype = tensors.dtype(name) if name in tensors else None
    scale = scalar(tensors, name) if dtype is not None and dtype.is_floating_point else None
    if scale is None or dtype is None:
        return
    zero_point = (scalar(tensors, zero) if zero in tensors and not args.symmetric else None) or 0.0
    if leaf == "input_global_scale":
        low, high = (-NVFP4_RANGE / scale, NVFP4_RANGE / scale) if scale else (-np.inf, np.inf)
    else:
        first, last = (float(bound) for bound in calculate_range(args, torch.device("cpu")))
        # Symmetric scales are the range over the number of steps: amax / 127.5 for INT8, although the last code is 127.
        half = (last - first) / 2
        ends = (-half, half) if args.symmetric else (first - zero_point, last - zero_point)
        low, high = ends[0] * scale, ends[1] * scale
    yield InputRange(
        module=module,
        tensor=name,
        scale=scale,
        zero_point=zero_point,
        low=low,
        high=high,
        epsilons=epsilons(dtype) if leaf == "input_scale" else (),
        averages=args.observer in AVERAGING,
    )


def _any(configuration: Configuration) -> QuantizationArgs:
    """How the artifact quantizes static inputs, for scales at modules that no target names."""
    given = [row.scheme.input_activations for row in configuration.assigned.values() if row.scheme.input_activations]
    return next((args for args in given if args.dynamic is False), QuantizationArgs(num_bits=8, symmetric=True))


def _contents(
    checkpoint: Checkpoint, inputs: set[str]
) -> tuple[list[WeightContents], list[OtherScale], list[DenseContents]]:
    """Every tensor of the contract that has its form, read once."""
    tensors = checkpoint.tensors
    weights: list[WeightContents] = []
    others: list[OtherScale] = []
    dense: list[DenseContents] = []
    idle: dict[str, NDArray[np.bool_]] = {}
    for module in checkpoint.quantized.values():
        leaf = "weight_packed" if "weight_packed" in module.forms else "weight"
        if module.scheme.weights is None or not fulfils(tensors, checkpoint.expected.get(f"{module.saved}.{leaf}")):
            continue
        if leaf == "weight" and module.forms[leaf].dtypes[0] in FLOATS:
            dense.append(dense_contents(tensors, module.module, f"{module.saved}.{leaf}"))
            continue
        row, unused = weight_contents(tensors, module)
        weights.append(row)
        if unused is not None:
            idle[f"{module.saved}.weight_scale"] = unused
    for tensor in checkpoint.expected.values():
        if not fulfils(tensors, tensor) or tensor.name in inputs:
            continue
        if tensor.leaf.endswith("scale") and tensor.quantized:
            others.append(other_scale(tensors, tensor.module, tensor.name, idle.get(tensor.name)))
        elif not tensor.quantized:
            dense.append(dense_contents(tensors, tensor.module, tensor.name))
    for name in tensors:
        stem, _, leaf = name.rpartition(".")
        if leaf in SCALES and name not in checkpoint.expected and name not in inputs and _floats(tensors, name):
            others.append(other_scale(tensors, stem, name))
    return weights, others, dense


def _floats(tensors: TensorSource, name: str) -> bool:
    dtype = tensors.dtype(name)
    return dtype is not None and dtype.is_floating_point
