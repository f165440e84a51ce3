"""Tensors of a safetensors checkpoint by name, over all its shards; only those asked for are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from quantaudit.common.reading.json_document import parse_json
from quantaudit.common.reading.regular_files import CARD_BYTES, read_text
from quantaudit.errors import ModelError
from quantaudit.model.loading.weight_files import INDEX, named_files

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in a safetensors header that torch has too."""


class TensorSource(Protocol):
    """Names, shapes, dtypes and values of a checkpoint's tensors, wherever they lie."""

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of this name."""

    def __iter__(self) -> Iterator[str]:
        """Names, sorted."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def dtype(self, name: str) -> torch.dtype | None:
        """Its dtype, without reading it; None for one that torch does not have."""

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored form."""


class Tensors:
    """Tensors of a folder's shards. config: its config.json, of a folder of which only what transformers opens is read.

    lost: names that the index of the shards lists and its shard does not hold. Read with torch, as NumPy has no
    bfloat16; resolving an artifact's targets has loaded torch anyway.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self._shard: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        paths, named = _shards(folder) if config is None else _loaded(folder, config)
        for path in paths:
            with _explained(path):
                self._open[path] = safe_open(path, framework="pt")
                self._shard |= dict.fromkeys(self._open[path].keys(), path)
        self.lost = tuple(name for name in named if name not in self._shard)

    def __contains__(self, name: str) -> bool:
        return name in self._shard

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._shard))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, from its header."""
        with self._file(name) as file:
            return tuple(file.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """Dtype of a tensor, from its header; None for one that torch does not have."""
        with self._file(name) as file:
            return _DTYPES.get(file.get_slice(name).get_dtype())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in its stored form."""
        with self._file(name) as file:
            stored: torch.Tensor = file.get_tensor(name)
            return stored

    @contextmanager
    def _file(self, name: str) -> Iterator[Any]:
        path = self._shard[name]
        with _explained(path):
            yield self._open[path]


def values(tensors: TensorSource, name: str) -> NDArray[np.float64]:
    """A tensor's values, flat, exactly."""
    return tensors.tensor(name).double().numpy().reshape(-1)


def scalar(tensors: TensorSource, name: str) -> float | None:
    """The only value of a tensor; None where it holds several."""
    numbers = values(tensors, name)
    return float(numbers[0]) if len(numbers) == 1 else None


def epsilons(dtype: torch.dtype) -> tuple[float, ...]:
    """What stands for a scale of zero: the eps of its own dtype, and of float32, in which it may have been computed."""
    of_dtype = torch.finfo(dtype).eps if dtype.is_floating_point else 1.0
    return of_dtype, float(torch.tensor(torch.finfo(torch.float32).eps).to(dtype))


def read_json(path: Path) -> Any:
    """Raises ModelError where the file is missing or not JSON."""
    try:
        return parse_json(read_text(path, CARD_BYTES), unique=True)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            f"cannot be read: {error}", where=str(path), hint="give a complete quantized checkpoint"
        ) from error


def _loaded(folder: Path, config: Mapping[str, Any]) -> tuple[list[Path], list[str]]:
    """The same of what transformers opens. Raises ModelError where a folder holds two sets of weights."""
    files = named_files(folder, config)
    _check_there(folder, files)
    index = folder / str(config.get("transformers_weights") or INDEX)
    named = read_json(index)["weight_map"] if index.name.endswith(".index.json") and index.is_file() else ()
    return list(files), list(named)


def _shards(folder: Path) -> tuple[list[Path], list[str]]:
    """Files, and names of the tensors that an index promises."""
    named: list[str] = []
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        where = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise ModelError("has no weight_map", where=str(folder / INDEX), hint="copy the checkpoint again")
        named, shards = list(where), [folder / name for name in sorted(set(where.values()))]
    else:
        shards = sorted(folder.glob("*.safetensors"))
    _check_there(folder, shards)
    return shards, named


def _check_there(folder: Path, shards: Sequence[Path]) -> None:
    missing = [path for path in shards if not path.is_file()]
    if missing or not shards:
        names = ", ".join(path.name for path in missing[:5])
        what = f"{names} {'is' if len(missing) == 1 else 'are'} missing" if missing else "no .safetensors files"
        raise ModelError(what, where=str(folder), hint="give a complete quantized checkpoint")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"cannot be read: {error}", where=str(path), hint="the file is incomplete; copy the checkpoint again"
        ) from error
