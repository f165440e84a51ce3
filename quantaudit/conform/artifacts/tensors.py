"""Tensors of a safetensors checkpoint by name, over all its shards; only those asked for are read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quantaudit.errors import ModelError

INDEX = "model.safetensors.index.json"


class Tensors:
    """Names, shapes, dtypes and values of a checkpoint's tensors.

    Read with torch, as NumPy has no bfloat16; resolving an artifact's targets has loaded torch anyway.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shard: dict[str, Path] = {}
        for path in _shards(folder):
            with _explained(path), safe_open(path, framework="pt") as file:
                self._shard |= dict.fromkeys(file.keys(), path)

    def __contains__(self, name: str) -> bool:
        return name in self._shard

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shard))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its header."""
        path = self._shard[name]
        with _explained(path), safe_open(path, framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it is stored."""
        path = self._shard[name]
        with _explained(path), safe_open(path, framework="pt") as file:
            found: torch.Tensor = file.get_tensor(name)
            return found

    def values(self, name: str) -> NDArray[np.float64]:
        """A tensor's values, flat, exactly."""
        return self.tensor(name).double().numpy().reshape(-1)

    def scalar(self, name: str) -> float:
        """The only value of a tensor. Raises ModelError where it holds several."""
        values = self.values(name)
        if len(values) != 1:
            raise ModelError(
                f"`{name}` holds {len(values)} values where one is expected",
                where=str(self._shard[name]),
                hint="conform reads per-tensor input scales",
            )
        return float(values[0])


def epsilons(dtype: torch.dtype) -> tuple[float, ...]:
    """What stands for a scale of zero: the eps of its own dtype, and of float32, in which it may have been computed."""
    own = torch.finfo(dtype).eps if dtype.is_floating_point else 1.0
    return own, float(torch.tensor(torch.finfo(torch.float32).eps).to(dtype))


def read_json(path: Path) -> Any:
    """Raises ModelError where the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            f"cannot be read: {error}", where=str(path), hint="give a complete quantized checkpoint"
        ) from error


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        names = sorted(set(index.get("weight_map", {}).values())) if isinstance(index, dict) else []
        found = [folder / name for name in names]
    else:
        found = sorted(folder.glob("*.safetensors"))
    missing = [path for path in found if not path.is_file()]
    if missing or not found:
        what = f"{missing[0].name} is missing" if missing else "no .safetensors files"
        raise ModelError(what, where=str(folder), hint="give a complete quantized checkpoint")
    return found


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"cannot be read: {error}", where=str(path), hint="the file is incomplete; copy the checkpoint again"
        ) from error
