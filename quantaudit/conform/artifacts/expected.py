"""The contract of a checkpoint of compressed-tensors: every tensor that its configuration and the model call for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from quantaudit.conform.artifacts.records import Checkpoint, QuantizedModule
from quantaudit.conform.artifacts.strays import merged_experts, stray_tensors
from quantaudit.conform.artifacts.tensors import TensorSource
from quantaudit.conform.configuration import Assignment, Configuration, configure
from quantaudit.conform.contract import FLOATS, ExpectedTensor, Form, attention_forms, format_of, linear_forms
from quantaudit.conform.names import is_converted, saved_names, skeleton, tied
from quantaudit.conform.rotations import rotations
from quantaudit.provenance import ModuleInfo
from quantaudit.recipe.digest import quantizes

STORAGE = re.compile(
    r"(?:(?:weight|input|output|q|k|v)_(?:scale|zero_point|global_scale)|weight_(?:packed|shape|g_idx)|bitmask|compressed)$"
)
"""Leaves of tensors that only a quantized module has."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def contract_of(
    tensors: TensorSource,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    modules: Sequence[ModuleInfo],
    path: str,
    lost: tuple[str, ...],
) -> Checkpoint:
    """The checkpoint with every tensor that its configuration calls for; nothing is read of their contents yet.

    tensors: what is stored. config, settings: its config.json, and the quantization_config in it. modules: of the
    model that the card is about. path: names it in messages. lost: tensors of the index that are in no shard.

    Raises ModelError where the configuration is none that compressed-tensors understands.
    """
    by_name = {info.name: info for info in modules}
    model = skeleton(config)
    saved = saved_names(model, list(by_name), {name.rpartition(".")[0] for name in tensors})
    configuration = configure(settings, modules, saved, f"{path}/config.json")
    dtype = _dtype(config, tensors)
    quantized = {
        name: _quantized(by_name[name], assignment, configuration, saved[name], dtype)
        for name, assignment in configuration.assigned.items()
        if quantizes(assignment.scheme) and by_name[name].weight_shape
    }
    expected = [row for module in quantized.values() for row in _module_tensors(module)]
    plain = [info for name, info in by_name.items() if info.weight_shape and name not in quantized]
    expected += [_dense(info, saved[info.name], dtype) for info in plain]
    expected += _attention(configuration, by_name, saved, model, config, dtype)
    merged = merged_experts(tensors, model, by_name, saved)
    expected += _more(tensors, model, by_name, saved, {*merged, *(row.name for row in expected)})
    is_tied = tied(config, model)
    optional = frozenset(_heads(by_name, saved) if is_tied else ())
    rotated = rotations(settings.get("transform_config") or {}, by_name) or {}
    stems = tuple(f"{saved[name]}.{part}." for name, parts in rotated.items() for part in parts)
    called_for = {*optional, *(row.name for row in expected), *(name for name in tensors if name.startswith(stems))}
    strays = stray_tensors(tensors, model, by_name, saved, called_for)
    return Checkpoint(
        tensors=tensors,
        config=config,
        settings=settings,
        configuration=configuration,
        modules=by_name,
        saved=saved,
        quantized=quantized,
        expected={row.name: row for row in expected},
        optional=optional,
        tied=is_tied,
        lost=lost,
        strays=tuple(sorted({*strays, *merged})),
    )


def _quantized(
    info: ModuleInfo, assignment: Assignment, configuration: Configuration, saved: str, dtype: torch.dtype
) -> QuantizedModule:
    scheme, shape, problem = assignment.scheme, tuple(info.weight_shape or ()), None
    forms: Mapping[str, Form] = {}
    format = format_of(scheme, configuration.parsed.format)
    try:
        forms = linear_forms(scheme, format, shape, dtype, group_index=assignment.group in configuration.ordered)
    except (ValueError, NotImplementedError, AssertionError) as error:
        problem = str(error).splitlines()[0]
    return QuantizedModule(
        module=info.name,
        saved=saved,
        group=assignment.group,
        scheme=scheme,
        format=format,
        shape=shape,
        forms=forms,
        problem=problem,
    )


def _module_tensors(module: QuantizedModule) -> Iterable[ExpectedTensor]:
    for leaf, form in module.forms.items():
        yield ExpectedTensor(name=f"{module.saved}.{leaf}", module=module.module, leaf=leaf, form=form, quantized=True)


def _dense(info: ModuleInfo, saved: str, dtype: torch.dtype) -> ExpectedTensor:
    form = Form(shape=tuple(info.weight_shape or ()), dtypes=(dtype, *sorted(FLOATS - {dtype}, key=str)))
    return ExpectedTensor(name=f"{saved}.weight", module=info.name, leaf="weight", form=form, quantized=False)


def _attention(
    configuration: Configuration,
    modules: Mapping[str, ModuleInfo],
    saved: Mapping[str, str],
    model: nn.Module | None,
    config: Mapping[str, Any],
    dtype: torch.dtype,
) -> Iterable[ExpectedTensor]:
    """Scales of caches (`kv_cache_scheme`) and of attention that a group targets."""
    cache = configuration.parsed.kv_cache_scheme
    plans = {name: (row.scheme.input_activations, "qkv") for name, row in configuration.attention.items()}
    if cache is not None:
        plans |= {name: (cache, "kv") for name in _caching(modules, model) if name not in plans}
    for name, (args, bases) in plans.items():
        if args is None or args.dynamic is True:
            continue
        heads = _heads_of(config)
        for leaf, form in attention_forms(args, {base: heads[base] for base in bases}, dtype).items():
            # The number of heads is the configuration's; layers may differ from it.
            constant = form if args.strategy == "tensor" else None
            yield ExpectedTensor(name=f"{saved[name]}.{leaf}", module=name, leaf=leaf, form=constant, quantized=True)


def _caching(modules: Mapping[str, ModuleInfo], model: nn.Module | None) -> list[str]:
    """Attention modules that have a cache, as compressed-tensors recognizes them."""
    from compressed_tensors.quantization.lifecycle.initialize import is_cached_attention_module

    if model is not None:
        live = {name for name, module in model.named_modules() if is_cached_attention_module(module)}
        return [name for name in modules if name in live]
    parts = ("k_proj", "v_proj", "qkv_proj", "kv_b_proj")
    return [
        name
        for name, info in modules.items()
        if "attention" in info.classes[0].lower() and any(f"{name}.{part}" in modules for part in parts)
    ]


def _heads_of(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    assert isinstance(text, Mapping)
    queries = int(text.get("num_attention_heads") or 1)
    size = int(text.get("head_dim") or int(text.get("hidden_size") or queries) // queries)
    keys = int(text.get("num_key_value_heads") or queries)
    return {"q": (queries, size), "k": (keys, size), "v": (keys, size)}


def _more(
    tensors: TensorSource,
    model: nn.Module | None,
    modules: Mapping[str, ModuleInfo],
    saved: Mapping[str, str],
    expected: set[str],
) -> Iterable[ExpectedTensor]:
    """Parameters that a card does not list, such as biases: what other layers store, and what the model's class has."""
    holders = {other: name for name, other in saved.items()}
    by_role: dict[tuple[str, str], Counter[tuple[int, ...]]] = {}
    for name in tensors:
        stem, _, leaf = name.rpartition(".")
        if stem in holders and name not in expected and not STORAGE.match(leaf) and leaf != "weight":
            by_role.setdefault((_role(stem, modules[holders[stem]]), leaf), Counter())[tensors.shape(name)] += 1
    parameters: dict[str, ExpectedTensor] = {}
    roles: dict[str, list[str]] = {}
    for stem in holders:
        roles.setdefault(_role(stem, modules[holders[stem]]), []).append(stem)
    for (role, leaf), shapes in by_role.items():
        # One odd layer out of many does not make a tensor a rule.
        if 2 * sum(shapes.values()) > len(roles[role]) or len(roles[role]) == 2:
            form = Form(shape=shapes.most_common(1)[0][0], dtypes=tuple(FLOATS)) if len(shapes) == 1 else None
            for stem in roles[role]:
                parameters[f"{stem}.{leaf}"] = ExpectedTensor(
                    name=f"{stem}.{leaf}", module=holders[stem], leaf=leaf, form=form, quantized=False
                )
    if model is not None:
        parameters |= {row.name: row for row in _of_class(model, modules, tensors)}
    return parameters.values()


def _of_class(model: nn.Module, modules: Mapping[str, ModuleInfo], tensors: TensorSource) -> Iterable[ExpectedTensor]:
    """Parameters of the class that config.json names, but for weights, which a card lists with their shapes."""
    converted = is_converted(model)
    shapes = {path: tuple(parameter.shape) for path, parameter in model.named_parameters()}
    saved = saved_names(model, list(shapes), set(tensors), probe="")
    for path, shape in shapes.items():
        stem, _, leaf = path.rpartition(".")
        if stem in modules and leaf != "weight" and not converted(path):
            form = Form(shape=shape, dtypes=tuple(FLOATS))
            yield ExpectedTensor(name=saved[path], module=stem, leaf=leaf, form=form, quantized=False)


def _role(stem: str, info: ModuleInfo) -> str:
    """What a module is in its layer: its path without numbers, and its class, as lists hold unlike modules too."""
    return f"{_NUMBER.sub('*', stem)} {info.classes[0]}"


def _heads(modules: Mapping[str, ModuleInfo], saved: Mapping[str, str]) -> list[str]:
    """Names of tensors that a tied checkpoint may leave out: the weight of the output embedding."""
    embedded = {tuple(info.weight_shape or ()) for info in modules.values() if "Embedding" in info.classes}
    return [
        f"{saved[name]}.weight"
        for name, info in modules.items()
        if "Linear" in info.classes and tuple(info.weight_shape or ()) in embedded and not re.search(r"\.\d+\.", name)
    ]


def _dtype(config: Mapping[str, Any], tensors: TensorSource) -> torch.dtype:
    """Of the unquantized model: what config.json says, else what most plain tensors have."""
    for part in (config, config.get("text_config") or {}):
        named = str(part.get("dtype") or part.get("torch_dtype") or "")
        dtype = getattr(torch, named.removeprefix("torch."), None) if named else None
        if dtype in FLOATS:
            return dtype  # type: ignore[no-any-return]
    stored = Counter(tensors.dtype(name) for name in tensors if name.endswith("norm.weight"))
    common = stored.most_common(1)[0][0] if stored else None
    return common if common in FLOATS and common is not None else torch.bfloat16


def fulfils(tensors: TensorSource, row: ExpectedTensor | None) -> bool:
    """Whether a tensor is there, in its shape and one of its dtypes."""
    if row is None or row.name not in tensors:
        return False
    if row.form is None:
        return True
    return row.form.has_shape(tensors.shape(row.name)) and tensors.dtype(row.name) in row.form.dtypes
