"""Checkpoints that compressed-tensors wrote: llm-compressor's output, as vLLM loads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_range
from compressed_tensors.utils import match_named_modules, match_targets
from pydantic import ValidationError
from torch import nn

from quantaudit.conform.artifacts.records import Artifact, InputRange, Missing, OtherScale
from quantaudit.conform.artifacts.tensors import Tensors, epsilons
from quantaudit.errors import ModelError
from quantaudit.provenance import ModuleInfo, explain
from quantaudit.recipe.shell import shell_model

METHOD = "compressed-tensors"


def read_compressed(folder: Path, settings: Mapping[str, Any], modules: Sequence[ModuleInfo]) -> Artifact:
    """Scales of a checkpoint folder. settings: its quantization_config. modules: of the model that the card is about.

    Raises ModelError where a file cannot be read, or the configuration is none that compressed-tensors understands.
    """
    schemes = targeted(parse(settings, folder), modules)
    tensors = Tensors(folder)
    inputs, missing = [], []
    for module, scheme in schemes.items():
        args = scheme.input_activations
        static = args is not None and args.dynamic is False
        if scheme.weights is not None and f"{module}.weight_scale" not in tensors:
            missing.append(_missing(module, "weight_scale", "its weights"))
        if not static:
            continue
        if f"{module}.input_scale" not in tensors:
            missing.append(_missing(module, "input_scale", "its input, with a static scale"))
        elif args.strategy == "tensor":
            inputs.append(_input_range(tensors, module, args))
    read = {row.tensor for row in inputs}
    held = [name for name in tensors if name.endswith(("_scale", "_global_scale")) and name not in read]
    unplanned = [
        name for name in held if name.endswith(".input_scale") and name.removesuffix(".input_scale") not in schemes
    ]
    return Artifact(
        kind=METHOD,
        path=str(folder),
        weights=_weights(tensors),
        inputs=[
            *inputs,
            *(_input_range(tensors, name.removesuffix(".input_scale"), _any(schemes)) for name in unplanned),
        ],
        others=[_other(tensors, name) for name in held if name not in unplanned],
        missing=missing,
        dynamic=[m for m, s in schemes.items() if s.input_activations is not None and s.input_activations.dynamic],
    )


def parse(settings: Mapping[str, Any], folder: Path) -> QuantizationConfig:
    """The configuration as compressed-tensors reads it. Raises ModelError."""
    try:
        return QuantizationConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise ModelError(
            f"quantization_config is not one of compressed-tensors: {explain(error)}",
            where=str(folder / "config.json"),
            hint="give a checkpoint as llm-compressor saves it",
        ) from error


def targeted(config: QuantizationConfig, modules: Sequence[ModuleInfo]) -> dict[str, QuantizationScheme]:
    """Modules that the configuration says are quantized, in the model's order, each with its scheme."""
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    return {
        name: schemes[match_targets(name, module, schemes)[0]]
        for name, module in match_named_modules(shell_model(modules), schemes, config.ignore)
        # compressed-tensors' matchers also name modules that nothing can quantize.
        if isinstance(module, nn.Linear | nn.Embedding)
    }


def _missing(module: str, tensor: str, what: str) -> Missing:
    return Missing(
        module=module, tensor=f"{module}.{tensor}", reason=f"the artifact's quantization_config quantizes {what}"
    )


def _any(schemes: Mapping[str, QuantizationScheme]) -> QuantizationArgs:
    """How the artifact quantizes static inputs, for scales at modules that no target names."""
    given = [scheme.input_activations for scheme in schemes.values() if scheme.input_activations is not None]
    return next((args for args in given if args.dynamic is False), QuantizationArgs(num_bits=8, symmetric=True))


def _input_range(tensors: Tensors, module: str, args: QuantizationArgs) -> InputRange:
    name, zero = f"{module}.input_scale", f"{module}.input_zero_point"
    scale = tensors.scalar(name)
    zero_point = tensors.scalar(zero) if zero in tensors else 0.0
    first, last = (float(bound) for bound in calculate_range(args, torch.device("cpu")))
    # Symmetric scales are the range over the number of steps: amax / 127.5 for INT8, although the last code is 127.
    ends = (-(last - first) / 2, (last - first) / 2) if args.symmetric else (first - zero_point, last - zero_point)
    return InputRange(
        module=module,
        tensor=name,
        scale=scale,
        zero_point=zero_point,
        low=ends[0] * scale,
        high=ends[1] * scale,
        epsilons=epsilons(tensors.tensor(name).dtype),
    )


def _other(tensors: Tensors, name: str) -> OtherScale:
    module, values = name.rpartition(".")[0], tensors.values(name)
    idle = np.zeros(len(values), bool)
    codes = f"{module}.weight"
    if name.endswith(".weight_scale") and codes in tensors and tensors.shape(codes)[0] == len(values) > 1:
        idle = ~tensors.tensor(codes).float().bool().any(1).numpy()
    return OtherScale(module=module, tensor=name, values=values, idle=idle)


def _weights(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Module → shape of its weight; integers that are packed have it beside them."""
    found: dict[str, tuple[int, ...]] = {}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight":
            found[module] = tensors.shape(name)
        elif leaf == "weight_packed":
            shape = f"{module}.weight_shape"
            found[module] = tuple(int(size) for size in tensors.values(shape)) if shape in tensors else ()
    return found
