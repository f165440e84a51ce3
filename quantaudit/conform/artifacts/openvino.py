"""OpenVINO models with INT8 activations, as `optimum-cli export openvino --quant-mode int8` writes them.

The range of a Linear's input is in the FakeQuantize operation before its MatMul. Where the quantizer smoothed
activations first (SmoothQuant), a Multiply by one constant a channel comes before that: the range is of the product.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from quantaudit.common.reading.regular_files import special_kind
from quantaudit.conform.artifacts.records import Artifact, InputRange, OtherScale
from quantaudit.errors import ModelError, UsageError
from quantaudit.provenance import ModuleInfo

_MODULE = re.compile(r"(?:^|.*/)__module\.(?P<module>[^/]+)/")
_SAME_VALUES = {"Convert", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
"""Operations that hand on the values they are given."""


def read_openvino(path: Path, modules: Sequence[ModuleInfo]) -> Artifact:
    """Ranges of every Linear of the card that the model's graph names. Raises ModelError, UsageError."""
    # OpenVINO reports its use to a server at import; its own stub takes the place of the package that does.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    try:
        import openvino
    except ImportError as error:
        raise UsageError(
            "reading an OpenVINO model needs the package openvino",
            where=str(path),
            hint="pip install 'quantaudit[openvino]'",
        ) from error
    for file in (path, path.with_suffix(".bin")):
        if kind := special_kind(file):
            raise ModelError(f"is {kind}, not a file", where=str(file), hint="give the .xml with its .bin next to it")
    try:
        operations = openvino.Core().read_model(path).get_ops()
        for operation in operations:
            operation.get_friendly_name()
    except (RuntimeError, ValueError) as error:  # names that are no UTF-8 among them
        lines = [line for line in str(error).splitlines() if line.strip()] or ["unknown format"]
        raise ModelError(
            f"cannot be read: {lines[-1].strip()}", where=str(path), hint="give the .xml with its .bin next to it"
        ) from error
    linears = [info.name for info in modules if {"Linear", "Conv1D"} & set(info.classes)]
    weights: dict[str, tuple[int, ...]] = {}
    inputs: list[InputRange] = []
    others: list[OtherScale] = []
    for operation in operations:
        module = _module(operation, linears) if operation.get_type_name() == "MatMul" else None
        if module is None:
            continue
        weights[module] = _weight_shape(operation)
        quantizer = _producer(operation, 0)
        if quantizer.get_type_name() == "FakeQuantize":
            inputs.append(_input_range(module, quantizer))
        scale = _weight_scale(module, operation)
        others += [scale] if scale is not None else []
    return Artifact(kind="openvino", path=str(path), weights=weights, inputs=inputs, others=others)


def _module(operation: Any, linears: Sequence[str]) -> str | None:
    """The card's Linear that a MatMul computes; exporters may put a wrapper's name before it, or leave one out."""
    match = _MODULE.match(operation.get_friendly_name())
    if match is None:
        return None
    name = match["module"]
    if name in linears:
        return name
    near = [linear for linear in linears if name.endswith(f".{linear}") or linear.endswith(f".{name}")]
    return near[0] if len(near) == 1 else None


def _source(operation: Any, index: int) -> Any:
    return operation.input(index).get_source_output().get_node()


def _producer(operation: Any, index: int) -> Any:
    """What computes an operation's input, past operations that hand values on."""
    node = _source(operation, index)
    while node.get_type_name() in _SAME_VALUES:
        node = _source(node, 0)
    return node


def _constant(operation: Any, index: int) -> NDArray[np.float64] | None:
    """Values of an input that is a constant, flat."""
    node = _producer(operation, index)
    if node.get_type_name() != "Constant":
        return None
    return np.asarray(node.get_data()).astype(np.float64).reshape(-1)


def _weight_shape(matmul: Any) -> tuple[int, ...]:
    shape = matmul.input(1).get_partial_shape()
    if shape.is_dynamic:
        return ()
    sizes = tuple(int(size) for size in shape.to_shape())
    return sizes if matmul.get_attributes().get("transpose_b") else sizes[::-1]


def _input_range(module: str, quantizer: Any) -> InputRange:
    ends = [_constant(quantizer, index) for index in (1, 2)]
    if ends[0] is None or ends[1] is None:
        raise ModelError(f"the range of `{quantizer.get_friendly_name()}` is not constant", where=module)
    # One range a tensor; were there several, what clips is the narrowest.
    low, high = float(ends[0].max()), float(ends[1].min())
    return InputRange(
        module=module,
        tensor=quantizer.get_friendly_name(),
        scale=(high - low) / (int(quantizer.get_attributes()["levels"]) - 1),
        zero_point=0.0,
        low=low,
        high=high,
        epsilons=(),
        factors=_smoothing(quantizer),
    )


def _smoothing(quantizer: Any) -> NDArray[np.float64] | None:
    """What each channel is multiplied by before it is quantized; None where it is not."""
    node = _producer(quantizer, 0)
    if node.get_type_name() != "Multiply" or "smooth_quant" not in node.get_friendly_name():
        return None  # an activation function's product, such as that of a gated MLP
    constants = [values for index in (0, 1) if (values := _constant(node, index)) is not None]
    return constants[0] if constants else None


def _weight_scale(module: str, matmul: Any) -> OtherScale | None:
    """Scales of a weight that is stored as integers times a constant."""
    node = _producer(matmul, 1)
    if node.get_type_name() != "Multiply":
        return None
    values = _constant(node, 1)
    if values is None:
        return None
    idle: NDArray[np.bool_] = np.zeros(len(values), np.bool_)
    codes = _producer(node, 0)
    if codes.get_type_name() == "Constant" and len(values) > 1:
        stored = np.asarray(codes.get_data())
        if stored.ndim == 2 and stored.shape[0] == len(values):
            idle = np.logical_not(stored.any(axis=1))
    return OtherScale(module=module, tensor=node.get_friendly_name(), values=values, idle=idle)
