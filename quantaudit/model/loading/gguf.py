"""GGUF files, read once: transformers parses one for its configuration, for its tokenizer, and for its weights.

It looks up gguf's reader at every call. Within `parsed_once` it finds one that parses each file once, quickly, and is
forgotten afterwards. gguf's own makes two memory-mapped arrays of every token and every merge of a vocabulary, which
takes seconds; so does its table of tensor names, which transformers asks for once for every module of the model.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import gguf
import numpy as np
from gguf import GGUFReader, GGUFValueType
from numpy.typing import NDArray
from transformers import modeling_gguf_pytorch_utils

from quantaudit.errors import ModelError
from quantaudit.model.loading.weight_files import AGAIN, CUT_SHORT

_LENGTH = struct.Struct("=Q")


class QuickReader(GGUFReader):  # type: ignore[misc]
    """gguf's reader, with the same fields, types and tensors. Arrays of strings keep the strings without lengths."""

    @property
    def data(self) -> NDArray[np.uint8]:
        """The whole file, uint8 [bytes], mapped: pages are read when they are used."""
        return self._data

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        # A view of a memmap is a memmap again, which takes ten times as long to make as a view of an array.
        self._data = mapped.view(np.ndarray)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
            return super()._get_field_parts(orig_offs, raw_type)
        header = [self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)]
        kind, count, start = GGUFValueType(header[0][0]), int(header[1][0]), orig_offs + 12
        if kind == GGUFValueType.STRING:
            parts, end = self._strings(start, count)
        elif kind in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            parts, end = list(values.reshape(-1, 1)), start + values.nbytes
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, *[kind][:count]]
        return end - orig_offs, header + parts, list(range(2, 2 + len(parts))), types

    def _strings(self, start: int, count: int) -> tuple[list[NDArray[np.uint8]], int]:
        """So many strings, each stored behind its length, and where the last one ends."""
        parts: list[NDArray[np.uint8]] = []
        stored: Any = self._data
        for _ in range(count):
            end = start + 8 + _LENGTH.unpack_from(stored, start)[0]
            parts.append(self._data[start + 8 : end])
            start = end
        return parts, start


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within the context every GGUF file is parsed at most once, by its path, size and time of change."""
    if isinstance(gguf.GGUFReader, _Readers):
        yield
        return
    with ExitStack() as stack:
        _serve(stack, gguf, "GGUFReader", _Readers())
        _serve(stack, gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        # Its bar would be drawn over ours, and over a notebook's output.
        _serve(stack, modeling_gguf_pytorch_utils, "tqdm", partial(modeling_gguf_pytorch_utils.tqdm, disable=True))
        yield


class _Readers:
    """Stands for the class of readers; gives one for each state of a file. Raises ModelError for a broken one."""

    def __init__(self) -> None:
        self.readers: dict[tuple[str, int, int], QuickReader] = {}

    def __call__(self, path: os.PathLike[str] | str) -> QuickReader:
        state = os.stat(path)
        key = os.path.realpath(path), state.st_size, state.st_mtime_ns
        if key not in self.readers:
            try:
                self.readers[key] = QuickReader(path)
            except (ValueError, LookupError, OverflowError, struct.error) as error:  # whatever reads beyond its end
                raise ModelError(CUT_SHORT, where=str(path), hint=AGAIN) from error
        return self.readers[key]


def _serve(stack: ExitStack, module: Any, name: str, substitute: Any) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, substitute)
