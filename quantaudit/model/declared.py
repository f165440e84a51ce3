"""What a checkpoint says of its own size, held against limits before any memory is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from quantaudit.common.reading.regular_files import special_kind
from quantaudit.errors import ModelError

LAYERS = 2_000
"""Layers of one part of a model; the deepest published ones have a few hundred."""
EXPERTS = 100_000
"""Experts of a layer, and those of a model that become Linears of their own; a trillion parameters come as 25,000."""
PARTS = 1_000_000
"""Anything else that a configuration counts: heads, labels, codebooks."""
SIDE = 2**31
"""Any size of a tensor."""
TOKENS = 1 << 24
"""Ids of a tokenizer, whose memory follows the largest; published ones have up to 262,144 and some."""
SIDE_FILE_BYTES = 1 << 30
"""Of a tokenizer, a template or another file next to the weights; the largest tokenizers have 40 MB."""
_SLACK_BYTES = 1 << 30

_LAYERS = re.compile(r"(^|_)(n_layers?|num_layers|\w*_layers|depth)$")
_EXPERTS = re.compile(r"experts$")
_PER_TOKEN = re.compile(r"per_tok|top|shared|group|selected|active")
_COUNTS = re.compile(r"^(num|n)_")
_NO_COUNT = re.compile(r"token|position|param|pixel|step|sample|ctx|length|_id")
_LARGE_VALUE = re.compile(rb"[:,\[]\s*\d{8}")
_SIZES = re.compile(r"(size|dim|rank|width|d_model|d_ff|n_embd|channels)$")


def check_declared(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration whose counts nobody can build. Raises ModelError, naming the key, its value and the limit.

    settings: of the whole model, its parts (text, vision) in it.
    """
    for key, value in _numbers(settings):
        if _LAYERS.search(key):
            _check(key, value, LAYERS, where)
        elif _EXPERTS.search(key) and not _PER_TOKEN.search(key):
            _check(key, value, EXPERTS, where)
        elif _COUNTS.match(key) and not _NO_COUNT.search(key):
            _check(key, value, PARTS, where)
        elif _SIZES.search(key):
            _check(key, value, SIDE, where)


def check_experts(count: int) -> None:
    """Refuse to make Linears of so many experts. Raises ModelError."""
    if count > EXPERTS:
        raise ModelError(
            f"the model has {count:,} experts, and at most {EXPERTS:,} are made Linears of",
            hint="give a model with fewer experts",
        )


def check_files(folder: Path) -> None:
    """Refuse a folder that holds a pipe, a device or a socket, or a file next to the weights that is far too large.

    Loaders would wait for a pipe, read a device without end, and make room for every id of a tokenizer.
    Raises ModelError.
    """
    for path in sorted(folder.iterdir()):
        if kind := special_kind(path):
            raise ModelError(f"is {kind}, not a file", where=str(path), hint="give a complete checkpoint")
        if path.suffix in (".json", ".jinja", ".txt", ".model", ".py") and path.is_file():
            size = path.stat().st_size
            if size > SIDE_FILE_BYTES:
                raise ModelError(
                    f"has {size:,} bytes, and at most {SIDE_FILE_BYTES:,} are read",
                    where=str(path),
                    hint="download the checkpoint again",
                )
    _check_vocabulary(folder / "tokenizer.json")


def _check_vocabulary(file: Path) -> None:
    """Refuse a `tokenizer.json` with ids that no tokenizer has: its loader makes room for all below. Raises ModelError.

    Parsed for it only where eight digits stand as a value. What is no such file is the loader's to say.
    """
    if not file.is_file() or not _LARGE_VALUE.search(file.read_bytes()):
        return
    with suppress(ValueError, RecursionError, AttributeError):
        parts = {key: part for key, part in json.loads(file.read_bytes()).items() if key != "truncation"}
        largest = max((value for _key, value in _numbers(parts)), default=0)
        if largest >= TOKENS:
            raise ModelError(
                f"has the number {largest:,} where a tokenizer counts, and at most {TOKENS:,} tokens are read",
                where=str(file),
                hint="give the tokenizer.json that belongs to these weights",
            )


@contextmanager
def no_more_than_stored(stored_bytes: int, where: str) -> Iterator[None]:
    """Within the context, transformers is kept from making weights up that are larger than all that are stored.

    It gives memory to every weight that is missing, or has another shape, before it says so. Raises ModelError.
    """
    from transformers import PreTrainedModel

    original: Any = PreTrainedModel._move_missing_keys_from_meta_to_device

    def move(self: PreTrainedModel, missing: Any, *arguments: Any, **options: Any) -> Any:
        tensors = dict(self.state_dict())
        tensors |= dict(self.named_non_persistent_buffers())
        asked = (set(missing) - self.all_tied_weights_keys.keys()) | dict(self.named_non_persistent_buffers()).keys()
        wanted = {name: tensors[name].nbytes for name in asked if name in tensors and tensors[name].is_meta}
        if sum(wanted.values()) > stored_bytes + _SLACK_BYTES:
            name = max(wanted, key=lambda name: wanted[name])
            raise ModelError(
                f"the configuration asks for {sum(wanted.values()):,} bytes of weights that are not stored, "
                f"such as {name} with the shape {list(tensors[name].shape)}; {stored_bytes:,} bytes are",
                where=where,
                hint="give the config.json that belongs to these weights",
            )
        return original(self, missing, *arguments, **options)

    PreTrainedModel._move_missing_keys_from_meta_to_device = move
    try:
        yield
    finally:
        PreTrainedModel._move_missing_keys_from_meta_to_device = original


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number of a configuration, with the key that is nearest above it."""
    stack = [(key, value)]
    while stack:
        name, item = stack.pop()
        if isinstance(item, bool):
            continue
        if isinstance(item, int | float):
            # 1e9 is read as a float, and used as a number of layers all the same.
            if item == item and abs(item) != float("inf") and int(item) == item:
                yield name, int(item)
        elif isinstance(item, Mapping):
            stack += [(str(inner), child) for inner, child in item.items()]
        elif isinstance(item, list | tuple):
            stack += [(name, child) for child in item]


def _check(key: str, value: int, limit: int, where: str) -> None:
    if -LAYERS <= value <= limit:  # layers may be counted from the last one, and -1 stands for none, or all
        return
    shown = f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"
    raise ModelError(
        f"the configuration says {key}: {shown}, and "
        + (f"at most {limit:,} are built" if value > 0 else "none can be"),
        where=where,
        hint="download the file again"
        if where.endswith(".gguf")
        else "give the config.json that belongs to these weights",
    )
