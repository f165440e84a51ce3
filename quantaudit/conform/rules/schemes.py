"""Rules about the configuration: groups that claim the same modules, fused units of mixed schemes, tied embeddings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from compressed_tensors.config import CompressionFormat
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from quantaudit.card.schema import Finding
from quantaudit.common.outcome import Severity
from quantaudit.conform.artifacts.expected import STORAGE
from quantaudit.conform.artifacts.records import Checkpoint
from quantaudit.conform.artifacts.tensors import scalar
from quantaudit.conform.contract import usual_format
from quantaudit.conform.rules.catalogue import finding
from quantaudit.model.groups import FUSED
from quantaudit.recipe.digest import identity

SAME = 0.01
"""Relative difference up to which two global scales are the same."""
_EXPERT = re.compile(r"^(?P<bank>.*\bexperts)\.(?P<number>\d+)\.")


def schemes(checkpoint: Checkpoint) -> list[Finding]:
    """QA618 to QA622."""
    return [
        *_rivals(checkpoint),
        *_mixed(checkpoint),
        *_global_scales(checkpoint),
        *_tied_head(checkpoint),
        *_configuration(checkpoint),
    ]


def fused_units(modules: Sequence[str]) -> dict[str, list[str]]:
    """Unit → modules that engines run under one scheme: fused siblings, and all projections of a layer's experts."""
    units: dict[str, list[str]] = {}
    for name in modules:
        expert = _EXPERT.match(name)
        if expert:
            units.setdefault(expert["bank"], []).append(name)
    return units | {unit: names for unit, names in _siblings(modules).items() if not _EXPERT.match(f"{unit}.")}


def _siblings(modules: Sequence[str]) -> dict[str, list[str]]:
    """Fused projection → sibling modules that engines run as one matrix, those of one expert too."""
    present, units = set(modules), {}
    for name in modules:
        parent, _, leaf = name.rpartition(".")
        for fused, leaves in FUSED.items():
            members = [f"{parent}.{other}" for other in leaves if f"{parent}.{other}" in present]
            if leaf == leaves[0] and len(members) > 1:
                units[f"{parent}.{fused}"] = members
    return units


def _rivals(checkpoint: Checkpoint) -> Iterator[Finding]:
    for row in checkpoint.configuration.rivalries:
        same = row.target == row.other
        claim = f"both target `{row.target}`" if same else f"match it by `{row.target}` and `{row.other}`"
        number = f" and {len(row.modules) - 1:,} more modules" if len(row.modules) > 1 else ""
        module = row.modules[0] if row.modules else None
        subject = f"`{module}`{number}: " if module else ""
        yield finding(
            "QA618",
            module,
            f"{subject}the groups `{row.group}` and `{row.rival}` {claim}, with different schemes",
            severity="error" if same else "warning",
        )


def _mixed(checkpoint: Checkpoint) -> Iterator[Finding]:
    linears = [name for name, info in checkpoint.modules.items() if {"Linear", "Conv1D"} & set(info.classes)]
    for unit, members in fused_units(linears).items():
        kinds: dict[str, list[str]] = {}
        for name in members:
            row = checkpoint.quantized.get(name)
            kind = "none" if row is None else f"{identity(row.scheme)} {row.format.value}"
            kinds.setdefault(kind, []).append(name)
        if len(kinds) < 2:
            continue
        fewest = min(kinds.values(), key=len)
        how = _how(checkpoint, fewest[0])
        rest = next(names for names in kinds.values() if names is not fewest)
        more = f" and {len(fewest) - 1:,} more" if len(fewest) > 1 else ""
        yield finding(
            "QA619",
            fewest[0],
            f"`{fewest[0]}`{more} of the fused unit `{unit}` {how}, while `{rest[0]}` {_how(checkpoint, rest[0])}",
        )


def _how(checkpoint: Checkpoint, name: str) -> str:
    row = checkpoint.quantized.get(name)
    return "is not quantized" if row is None else f"is quantized by the group `{row.group}`"


def _global_scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    """QA620: weights that engines fuse into one, with global scales that differ."""
    quantized = [name for name, row in checkpoint.quantized.items() if "weight_global_scale" in row.forms]
    for unit, members in _siblings(quantized).items():
        scales = {}
        for name in members:
            tensor = f"{checkpoint.quantized[name].saved}.weight_global_scale"
            value = scalar(checkpoint.tensors, tensor) if tensor in checkpoint.tensors else None
            if value is not None and 0 < value < float("inf"):
                scales[tensor] = (value, name)
        if len(scales) < 2:
            continue
        smallest, largest = min(scales, key=lambda key: scales[key][0]), max(scales, key=lambda key: scales[key][0])
        ratio = scales[smallest][0] / scales[largest][0]
        if ratio < 1 - SAME:
            yield finding(
                "QA620",
                scales[smallest][1],
                f"`{smallest}` is {ratio:.3g} of `{largest}`, in the fused unit `{unit}`",
                value=ratio,
                threshold=1 - SAME,
            )


def _tied_head(checkpoint: Checkpoint) -> Iterator[Finding]:
    if not checkpoint.tied:
        return
    for name, row in checkpoint.quantized.items():
        if "Embedding" in checkpoint.modules[name].classes and row.scheme.weights is not None:
            text = (
                f"`{row.saved}` is quantized, and tie_word_embeddings of config.json makes it the output embedding too"
            )
            yield finding("QA621", name, text)
    stored = {name.rpartition(".")[0] for name in checkpoint.tensors if STORAGE.match(name.rpartition(".")[2])}
    for tensor in sorted(checkpoint.optional):
        saved = tensor.rpartition(".")[0]
        module = next(name for name, other in checkpoint.saved.items() if other == saved)
        if module in checkpoint.quantized or saved in stored:
            text = f"`{saved}` is quantized, and tie_word_embeddings of config.json ties it to the embedding"
            yield finding("QA621", module, text)


# The configuration itself ---------------------------------------------------------------------------------------------


def _configuration(checkpoint: Checkpoint) -> Iterator[Finding]:
    parsed = checkpoint.configuration.parsed
    if not checkpoint.config.get("quantization_config"):
        yield finding(
            "QA622",
            None,
            "the configuration is not under `quantization_config` at the top of config.json, "
            "where transformers looks for it, but under `compression_config` or inside a part",
            severity="warning",
        )
    yield from _status(checkpoint)
    for group, scheme in parsed.config_groups.items():
        assert isinstance(scheme, QuantizationScheme)
        if not any(row.group == group for row in checkpoint.quantized.values()):
            continue
        first = next(name for name, row in checkpoint.quantized.items() if row.group == group)
        problems = [*_formats(checkpoint, scheme), *((text, "warning") for text in _odd(scheme))]
        for text, severity in problems:
            yield finding("QA622", first, f"group `{group}`: {text}", severity=severity)
        if scheme.output_activations is not None:
            text = f"group `{group}` quantizes the outputs of its modules, of which the card knows nothing"
            why = "Peaks are measured where Linears read, and what quantized outputs do was not simulated."
            remedy = "Leave `output_activations` out of the recipe, or run it with `quantaudit verify`."
            yield finding("QA628", first, text, why=why, remedy=remedy)
    cache = parsed.kv_cache_scheme
    if cache is not None and cache.num_bits != 8:
        text = f"kv_cache_scheme has {cache.num_bits} bits; engines hold caches of 8 bits"
        yield finding("QA622", None, text, severity="warning")
    elif cache is not None and cache.dynamic is not False:
        text = "kv_cache_scheme is dynamic; engines read the scales of a cache from the files"
        yield finding("QA622", None, text, severity="warning")


def _status(checkpoint: Checkpoint) -> Iterator[Finding]:
    """QA622: a status that says that codes are weights.

    transformers decompresses what is `compressed` only, and takes it for `initialized` where nothing is said: it loads
    codes as if they were weights, or leaves them out. In the format `dense`, weights are stored as they are.
    """
    status = checkpoint.settings.get("quantization_status")
    if status == "compressed":
        return
    coded = any(
        row.scheme.weights is not None and row.format is not CompressionFormat.dense
        for row in checkpoint.quantized.values()
    )
    said = "is missing, which transformers reads as `initialized`" if status is None else f"is `{status}`"
    consequence = ": transformers loads the codes as if they were weights" if coded else ""
    if coded or status is not None:
        text = f"quantization_status {said}, not `compressed`{consequence}"
        yield finding("QA622", None, text, severity="error" if coded else "warning")


def _formats(checkpoint: Checkpoint, scheme: QuantizationScheme) -> Iterator[tuple[str, Severity]]:
    whole = checkpoint.configuration.parsed.format
    named = CompressionFormat(scheme.format).value if scheme.format else None
    if named and whole not in (named, CompressionFormat.mixed_precision.value, "fakequant"):
        yield f"its format is {named}, that of the whole configuration {whole}", "error"
    used = named or whole
    formats = {format.value for format in CompressionFormat} - {CompressionFormat.mixed_precision.value}
    usual = usual_format(scheme).value
    # Versions before 0.13 wrote FP8 weights without inputs, and INT8 ones, under one of these names.
    naive = {"naive-quantized", "float-quantized"} if _type(scheme.weights) == "float" else {"naive-quantized"}
    alike = used == usual or {used, usual} <= naive | {"int-quantized"}
    if scheme.weights is not None and used in formats and not alike:
        severity: Severity = "warning" if _packed_at_will(scheme, {used, usual}) else "error"
        yield f"its format is {used}, and compressed-tensors stores such a scheme as {usual}", severity


def _packed_at_will(scheme: QuantizationScheme, formats: set[str]) -> bool:
    """Four-bit integers with quantized inputs: vLLM reads them packed for FP8 inputs, and in bytes for INT8 ones."""
    weights = scheme.weights
    four = weights is not None and _type(weights) == "int" and weights.num_bits == 4
    return four and scheme.input_activations is not None and formats == {"int-quantized", "pack-quantized"}


def _odd(scheme: QuantizationScheme) -> Iterator[str]:
    """What no engine combines. Sources: the schemes of vLLM's compressed-tensors integration, and all presets."""
    weights, inputs = scheme.weights, scheme.input_activations
    if weights is not None and weights.dynamic:
        yield "its weights are dynamic"
    if weights is None or inputs is None:
        return
    if inputs.num_bits not in (4, 8) or inputs.num_bits < weights.num_bits:
        yield f"inputs of {inputs.num_bits} bits with weights of {weights.num_bits}"
    if _type(inputs) == "int" and _type(weights) == "float":
        yield "integer inputs with float weights"
    if _type(inputs) == "float" and _type(weights) == "int" and weights.num_bits != 4:
        yield f"float inputs with integer weights of {weights.num_bits} bits"
    if _type(inputs) == "float" and not inputs.symmetric:
        yield "float inputs that are not symmetric"
    if inputs.strategy == "tensor_group" and (inputs.num_bits != 4 or weights.strategy != "tensor_group"):
        yield f"inputs of {inputs.num_bits} bits under a global scale with such weights"
    if inputs.dynamic is True and inputs.strategy == "tensor":
        yield "dynamic inputs with one scale a tensor"
    widths = {"inputs": inputs.group_size, "weights": _columns(weights)}
    if inputs.group_size and widths["inputs"] != widths["weights"]:
        yield f"inputs in groups of {inputs.group_size} with weights in groups of {widths['weights']}"


def _columns(weights: QuantizationArgs) -> int | None:
    block = weights.block_structure
    return int(block[1]) if block else weights.group_size


def _type(args: QuantizationArgs | None) -> str | None:
    return None if args is None else str(getattr(args.type, "value", args.type))
