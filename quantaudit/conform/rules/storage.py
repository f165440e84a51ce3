"""Rules about which tensors are stored, and as what: the contract against the headers of the files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.utils import is_match
from torch import nn

from quantaudit.card.schema import Finding
from quantaudit.conform.artifacts.expected import STORAGE
from quantaudit.conform.artifacts.records import Checkpoint, QuantizedModule
from quantaudit.conform.contract import FLOATS, ExpectedTensor, Form, format_of, linear_forms
from quantaudit.conform.rules.catalogue import finding

Kind = Literal["missing", "shape", "type"]
_CODES: dict[Kind, str] = {"missing": "QA606", "shape": "QA612", "type": "QA613"}
Stored = Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Leaf → shape and dtype, of one module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """One tensor that is not as its form says. what: in words, after the tensor's name."""

    kind: Kind
    leaf: str
    what: str


def stored_tensors(checkpoint: Checkpoint) -> list[Finding]:
    """QA606, QA610 to QA613, QA617: every module's tensors against the contract."""
    by_stem: dict[str, dict[str, tuple[tuple[int, ...], torch.dtype | None]]] = {}
    for name in checkpoint.tensors:
        stem, _, leaf = name.rpartition(".")
        by_stem.setdefault(stem, {})[leaf] = checkpoint.tensors.shape(name), checkpoint.tensors.dtype(name)
    expected: dict[str, list[ExpectedTensor]] = {}
    for row in checkpoint.expected.values():
        expected.setdefault(row.module, []).append(row)
    findings: list[Finding] = []
    for module, saved in checkpoint.saved.items():
        stored = by_stem.get(saved, {})
        if module in checkpoint.quantized:
            findings += _quantized(checkpoint, checkpoint.quantized[module], stored, expected.get(module, ()))
        elif module in expected or any(STORAGE.match(leaf) for leaf in stored):
            findings += _plain(checkpoint, module, saved, stored, expected.get(module, ()))
    return [*findings, *_strays(checkpoint), *_strangers(checkpoint, by_stem), *_lost(checkpoint)]


def mismatches(forms: Mapping[str, Form | None], stored: Stored) -> Iterator[Mismatch]:
    """What of the forms is not stored, or otherwise."""
    for leaf, form in forms.items():
        if leaf not in stored:
            yield Mismatch(kind="missing", leaf=leaf, what="is missing")
            continue
        shape, dtype = stored[leaf]
        if form is None:
            continue
        if not form.has_shape(shape):
            yield Mismatch(kind="shape", leaf=leaf, what=f"has the shape {list(shape)}, not {list(form.shape)}")
        if dtype not in form.dtypes:
            yield Mismatch(kind="type", leaf=leaf, what=f"is stored as {_spell(dtype)}, not {_spell(form.dtypes[0])}")


def _quantized(
    checkpoint: Checkpoint, module: QuantizedModule, stored: Stored, expected: Iterable[ExpectedTensor]
) -> Iterator[Finding]:
    name = module.module
    scheme = f"`{module.group}` ({module.format.value})"
    if module.problem is not None:
        yield finding("QA612", name, f"`{module.saved}` cannot be quantized by the group {scheme}: {module.problem}")
        return
    forms = {row.leaf: row.form for row in expected}
    if not stored.keys() & forms.keys() and "weight" not in stored:
        yield finding("QA610", name, f"none of the tensors of `{module.saved}` is in the files")
        return
    wrong = list(mismatches(forms, stored))
    extra = [leaf for leaf in stored if leaf not in forms and (STORAGE.match(leaf) or leaf == "weight")]
    extra = [leaf for leaf in extra if not _harmless(checkpoint, f"{module.saved}.{leaf}", leaf)]
    if not wrong and not extra:
        return
    if not any(STORAGE.match(leaf) for leaf in stored) and stored["weight"][1] in FLOATS:
        lacking = next((row.leaf for row in wrong if row.kind == "missing"), "weight_scale")
        yield finding(
            "QA606",
            name,
            f"`{module.saved}.{lacking}` is missing: the artifact's quantization_config quantizes the module by the "
            f"group {scheme}, and the files hold it unquantized",
        )
        return
    other = _stored_as(checkpoint, module, stored)
    if other is not None:
        tensor = wrong[0].leaf if wrong else extra[0]
        yield finding(
            "QA617",
            name,
            f"`{module.saved}.{tensor}` is not as the group {scheme} has it: the module is stored as the group "
            f"`{other}` calls for",
        )
        return
    for row in wrong:
        what = f"`{module.saved}.{row.leaf}` {row.what}"
        lacks = f": the artifact's quantization_config quantizes the module by the group {scheme}"
        yield finding(_code(row, quantized=True), name, what + lacks)
    for leaf in extra:
        yield finding("QA611", name, f"`{module.saved}.{leaf}` is stored, which the group {scheme} does not call for")


def _plain(
    checkpoint: Checkpoint, module: str, saved: str, stored: Stored, expected: Iterable[ExpectedTensor]
) -> Iterator[Finding]:
    """An unquantized module, or attention with the scales of its cache."""
    rows = list(expected)
    forms = {row.leaf: row.form for row in rows}
    codes = [leaf for leaf in stored if STORAGE.match(leaf) and leaf not in forms]
    codes = [leaf for leaf in codes if not _harmless(checkpoint, f"{saved}.{leaf}", leaf)]
    typed = stored.get("weight", ((), None))[1]
    if "weight" in stored and "weight" in forms and typed not in FLOATS | {torch.float64}:
        codes.append("weight")
    if codes:
        names = ", ".join(f"`{saved}.{leaf}`" for leaf in sorted(codes))
        what = "leaves the module unquantized" if "weight" in forms else "does not quantize what they scale"
        yield finding("QA611", module, f"the artifact's quantization_config {what}, and the files hold {names}")
    scales = {row.leaf for row in rows if row.quantized}
    for row in mismatches(forms, stored):
        name = f"{saved}.{row.leaf}"
        if (codes and row.leaf == "weight") or (row.kind == "missing" and name in checkpoint.optional):
            continue
        reason = ": the artifact's quantization_config quantizes the cache" if row.leaf in scales else ""
        yield finding(_code(row, quantized=row.leaf in scales), module, f"`{name}` {row.what}{reason}")


def _strays(checkpoint: Checkpoint) -> Iterator[Finding]:
    """One for each module, of tensors that the model does not have."""
    by_stem: dict[str, list[str]] = {}
    for name in checkpoint.strays:
        by_stem.setdefault(name.rpartition(".")[0], []).append(name)
    for stem, names in by_stem.items():
        shown = ", ".join(f"`{name}`" for name in sorted(names)[:3])
        yield finding("QA626", stem, f"the files hold {shown}, which the model does not have")


def _strangers(checkpoint: Checkpoint, by_stem: Mapping[str, Stored]) -> Iterator[Finding]:
    """Quantized storage below modules that the card does not know, such as experts that were merged."""
    stems = set(checkpoint.saved.values())
    if not stems & set(by_stem):
        return
    parents = {stem.rpartition(".")[0] for stem in stems}
    for stem, stored in by_stem.items():
        leaves = [leaf for leaf in stored if STORAGE.match(leaf) and leaf != "input_scale"]
        leaves = [leaf for leaf in leaves if f"{stem}.{leaf}" not in checkpoint.strays]
        if stem in stems or not leaves or not any(stem.startswith(f"{parent}.") for parent in parents if parent):
            continue
        names = ", ".join(f"`{stem}.{leaf}`" for leaf in sorted(leaves)[:3])
        text = f"the files hold {names}, of a module that the card does not know"
        if _targeted(checkpoint, stem):
            why = "Its contract follows from the shape of the module, which a card of this model would have."
            yield finding("QA607", stem, text, why=why)
        else:
            yield finding("QA611", stem, f"{text} and no group targets")


def _targeted(checkpoint: Checkpoint, stem: str) -> bool:
    """Whether the configuration quantizes a Linear of this name."""
    parsed = checkpoint.configuration.parsed
    linear = nn.Linear(1, 1, device="meta")
    targets = [target for scheme in parsed.config_groups.values() for target in scheme.targets]
    return bool(is_match(stem, linear, targets, parsed.ignore or []))


def _lost(checkpoint: Checkpoint) -> Iterator[Finding]:
    for name in checkpoint.lost:
        if name not in checkpoint.expected:
            yield finding("QA610", name.rpartition(".")[0], f"`{name}` is in the index of the shards and in no shard")


def _stored_as(checkpoint: Checkpoint, module: QuantizedModule, stored: Stored) -> str | None:
    """Another group of the configuration whose contract the stored tensors fulfil exactly."""
    dtype = next((form.dtypes[0] for leaf, form in module.forms.items() if form.dtypes[0] in FLOATS), torch.bfloat16)
    held = {leaf for leaf in stored if STORAGE.match(leaf) or leaf == "weight"}
    for group, scheme in checkpoint.configuration.parsed.config_groups.items():
        if group == module.group:
            continue
        assert isinstance(scheme, QuantizationScheme)
        try:
            forms = linear_forms(scheme, format_of(scheme, checkpoint.configuration.parsed.format), module.shape, dtype)
        except (ValueError, NotImplementedError, AssertionError):
            continue
        if set(forms) == held and not list(mismatches(forms, stored)):
            return str(group)
    return None


def _harmless(checkpoint: Checkpoint, name: str, leaf: str) -> bool:
    """Zero points of a symmetric scheme, which earlier versions saved: all zero, they change nothing."""
    return leaf.endswith("zero_point") and not bool(checkpoint.tensors.tensor(name).float().any())


def _code(row: Mismatch, *, quantized: bool) -> str:
    return "QA610" if row.kind == "missing" and not quantized else _CODES[row.kind]


def _spell(dtype: torch.dtype | None) -> str:
    return "an unknown type" if dtype is None else str(dtype).removeprefix("torch.")
