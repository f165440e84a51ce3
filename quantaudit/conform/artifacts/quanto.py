"""Models that optimum-quanto saved: safetensors with a `quanto_qmap.json` next to it. Its files say all there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantaudit.conform.artifacts.records import Artifact, InputRange, Missing, OtherScale
from quantaudit.conform.artifacts.tensors import Tensors, epsilons, read_json, scalar, values
from quantaudit.errors import ModelError

MAPS = ("quanto_qmap.json", "quantization_map.json")
"""As the library saves a transformers model, and as its documentation saves any other."""
LAST_CODE = {
    "qint8": 127.0,
    "qfloat8": 448.0,
    "qfloat8_e4m3fn": 448.0,
    "qfloat8_e4m3fnuz": 240.0,
    "qfloat8_e5m2": 57344.0,
}
"""Largest code of quanto's activation types; its grids are symmetric, INT8 without −128."""
INITIAL = 1.0
"""What a module's scales are before anything was calibrated."""


def find_map(folder: Path) -> Path | None:
    """The quantization map in a folder, if there is one."""
    return next((folder / name for name in MAPS if (folder / name).is_file()), None)


def read_quanto(folder: Path) -> Artifact:
    """Scales of a saved model. Raises ModelError."""
    path = find_map(folder)
    if path is None:
        raise ModelError("holds no quantization map", where=str(folder), hint=f"save it as {MAPS[0]}")
    settings = read_json(path)
    rows = settings.values() if isinstance(settings, dict) else [None]
    if not all(isinstance(row, dict) and all(isinstance(kind, str) for kind in row.values()) for row in rows):
        raise ModelError("is not a quantization map", where=str(path), hint="save it with optimum-quanto")
    tensors = Tensors(folder)
    inputs, others, missing = [], [], []
    for module, types in settings.items():
        kind = types.get("activations", "none")
        scaled = [("weight._scale", types.get("weights", "none"), "its weights")]
        # A LayerNorm in the map has a scale for its output only, and so has no static input range.
        if kind != "none" and _is_linear(tensors, module):
            scaled += [("input_scale", kind, "its input"), ("output_scale", kind, "its output")]
        for leaf, quantized, what in scaled:
            name = f"{module}.{leaf}"
            if quantized == "none":
                continue
            if name not in tensors:
                missing.append(
                    Missing(module=module, tensor=name, reason=f"{path.name} quantizes {what} to {quantized}")
                )
            elif leaf == "input_scale":
                inputs.append(_input_range(tensors, module, _last_code(quantized, path)))
            else:
                scales = values(tensors, name)
                idle = np.zeros(len(scales), bool)
                codes = f"{module}.weight._data"
                if leaf == "weight._scale" and codes in tensors and tensors.shape(codes)[0] == len(scales) > 1:
                    idle = ~tensors.tensor(codes).float().bool().any(1).numpy()
                others.append(OtherScale(module=module, tensor=name, values=scales, idle=idle))
    return Artifact(
        kind="optimum-quanto",
        path=str(folder),
        weights=_weights(tensors),
        inputs=inputs,
        others=others,
        missing=missing,
    )


def _is_linear(tensors: Tensors, module: str) -> bool:
    names = (f"{module}.weight._data", f"{module}.weight")
    return any(name in tensors and len(tensors.shape(name)) == 2 for name in names)


def _last_code(kind: str, path: Path) -> float:
    if kind not in LAST_CODE:
        raise ModelError(f"activations of the type {kind!r}", where=str(path), hint=f"one of {', '.join(LAST_CODE)}")
    return LAST_CODE[kind]


def _input_range(tensors: Tensors, module: str, last: float) -> InputRange:
    name = f"{module}.input_scale"
    scale = scalar(tensors, name)
    if scale is None:
        raise ModelError(
            f"`{name}` holds several values where one is expected",
            where=str(tensors.folder),
            hint="conform reads per-tensor input scales",
        )
    return InputRange(
        module=module,
        tensor=name,
        scale=scale,
        zero_point=0.0,
        low=-last * scale,
        high=last * scale,
        epsilons=(*epsilons(tensors.tensor(name).dtype), INITIAL),
    )


def _weights(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """Module → shape; weights below 8 bits are packed, and tell none."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in tensors:
        module, weight, rest = name.partition(".weight")
        if weight:
            shapes[module] = tensors.shape(name) if rest in ("", "._data") else shapes.get(module, ())
    return shapes
