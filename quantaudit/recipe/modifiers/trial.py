"""A recipe's schemes, each tried by llm-compressor itself on one small Linear: what it refuses, and how it would store.

What `oneshot` would meet only after the model is loaded, and often only after calibration, shows on a Linear of a few
thousand weights in milliseconds: observers that do not exist, types without arithmetic, schemes that cannot be stored.
"""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass
from math import lcm
from typing import Any

import torch
from compressed_tensors.compressors.format import infer_module_format
from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn

from quantaudit.common.logs import stdout_to_stderr

ROWS, COLUMNS = 16, 64
"""Least out_features and in_features of the Linear; they are whole multiples of groups and blocks."""
MOST_WEIGHTS = 1 << 24
"""Of the Linear: groups of 4,093 and of 4,091 columns have a multiple in common, and no model has it."""
LARGEST = 4096
"""Groups or blocks beyond this many columns or rows are tried at their own size, once."""
_PARTS = ("weights", "input_activations", "output_activations")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The outcome of trying a scheme.

    refused: llm-compressor's own words, or None; format: how weights are stored, or None. unread: arguments given to
    an observer that does not read them, as `part.observer_kwargs.name`.
    """

    refused: str | None
    format: str | None
    unread: tuple[str, ...] = ()


def try_scheme(scheme: QuantizationScheme) -> Trial:
    """Quantize one small Linear by a scheme, calibrated as `QuantizationModifier` does, and compress it."""
    with stdout_to_stderr(), warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        copy = deepcopy(scheme)
        reads = {part: _watch(getattr(copy, part)) for part in _PARTS}
        try:
            stored = _quantized(copy)
        except Exception as error:  # what it raises on an argument is llm-compressor's to choose
            return Trial(refused=_reason(error), format=None)
    unread = [f"{part}.observer_kwargs.{key}" for part, watched in reads.items() if watched for key in watched.unread()]
    return Trial(refused=None, format=stored, unread=tuple(unread))


def observers() -> frozenset[str]:
    """Names of the observers that llm-compressor knows, as its registry has them."""
    with stdout_to_stderr():
        from llmcompressor.observers import Observer
    return frozenset(Observer.registered_names())


def known_observer(name: str) -> bool:
    """Whether llm-compressor finds an observer by this name; it minds neither case nor the kind of hyphen."""
    from compressed_tensors.registry.registry import standardize_lookup_name

    return standardize_lookup_name(name) in {standardize_lookup_name(observer) for observer in observers()}


class _Watched(dict[str, Any]):
    """Keyword arguments that remember which of them were asked for."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def unread(self) -> list[str]:
        return [key for key in self if key not in self.asked]


def _watch(args: QuantizationArgs | None) -> _Watched | None:
    # A fully dynamic input has no observer, and a recipe may well give it arguments that wait for a static one.
    if args is None or not args.observer_kwargs or args.dynamic is True:
        return None
    watched = _Watched(args.observer_kwargs)
    args.observer_kwargs = watched
    return watched


def _quantized(scheme: QuantizationScheme) -> str:
    """Calibrate and compress one Linear; the name of its format. Raises whatever llm-compressor raises."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.lifecycle import initialize_module_for_quantization
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.quantization.calibration import freeze_module_quantization, observe, update_qparams
    from llmcompressor.observers import ACTIVATION_OBS

    rows, columns = _sizes(scheme)
    linear: Any = nn.Linear(columns, rows, bias=False)
    initialize_module_for_quantization(linear, scheme)
    modifier = QuantizationModifier(targets=["Linear"])
    modifier._initialize_observers(linear)
    hooks = modifier._initialize_hooks(linear)
    with torch.no_grad():
        linear(torch.randn(1, 4, columns))
        observe(linear, "weight")
        update_qparams(linear, [*ACTIVATION_OBS, "weight"])
        modifier.remove_hooks(hooks)
        freeze_module_quantization(linear)
        linear(torch.randn(1, 4, columns))
        # compressed_tensors keeps a format that it was given as text, and one that it inferred as a member.
        stored = str(CompressionFormat(scheme.format or infer_module_format(nn.Linear, scheme)).value)
        if scheme.weights is not None:
            compressor = BaseCompressor.get_value_from_registry(stored)
            if not compressor.can_compress(nn.Linear, scheme):
                raise ValueError(f"the format {stored} cannot hold such weights")
            compressor.compress_module(linear)
    return stored


def _sizes(scheme: QuantizationScheme) -> tuple[int, int]:
    """(out_features, in_features) that every group and block of a scheme divides."""
    rows, columns = ROWS, COLUMNS
    for part in _PARTS:
        args = getattr(scheme, part)
        if args is None:
            continue
        if args.group_size and 0 < args.group_size <= LARGEST:
            columns = lcm(columns, args.group_size)
            rows = lcm(rows, args.group_size) if part == "output_activations" else rows
        if args.block_structure and max(args.block_structure) <= LARGEST:
            rows, columns = lcm(rows, args.block_structure[0]), lcm(columns, args.block_structure[1])
    if rows * columns > MOST_WEIGHTS:
        raise ValueError(f"its groups and blocks divide no matrix of less than {rows:,} by {columns:,} together")
    return rows, columns


def _reason(error: Exception) -> str:
    # The text of a KeyError is the representation of its argument, in quotes and with escaped line ends.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
