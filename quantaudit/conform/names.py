"""The model that an artifact's config.json describes, without weights, and the names that its modules are saved under.

transformers renames modules as it loads a checkpoint, and back as it saves one: a card has the names in memory, the
files have the others (Mixtral's `block_sparse_moe`, Qwen2.5-VL's `model.layers`, Gemma 3's `language_model.model`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_PROBE = ".weight"
"""Patterns of renamings are of whole tensors; one stands for all of its module."""


def skeleton(config: Mapping[str, Any]) -> nn.Module | None:
    """The model of a config.json on the meta device, None where transformers does not have its class.

    No code of the checkpoint is run.
    """
    import transformers

    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    cls, settings = getattr(transformers, str(name), None), transformers.CONFIG_MAPPING
    if cls is None or str(config.get("model_type")) not in settings or "auto_map" in config:
        return None
    plain = {key: value for key, value in config.items() if not key.startswith(("quantization", "compression"))}
    return _built(json.dumps(plain, sort_keys=True))


@lru_cache(maxsize=2)
def _built(text: str) -> nn.Module | None:
    import transformers

    plain = json.loads(text)
    try:
        with torch.device("meta"):
            config = transformers.CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
            model: nn.Module = getattr(transformers, plain["architectures"][0])(config)
    except Exception:  # a configuration of another version, or one that was damaged: any class may raise anything
        return None
    return model


def saved_names(
    model: nn.Module | None, modules: Sequence[str], stored: Collection[str], *, probe: str = _PROBE
) -> dict[str, str]:
    """Module path in memory → path that the files have for it; of parameters, where `probe` is empty.

    stored: the modules in the files, or their tensors. Of the ways that transformers may have named them, those of
    most of these count for what is not in the files at all; some prefixes are saved only if they were there when it was
    loaded.
    """
    ways = [{name: name for name in modules}]
    if model is not None:
        ways += [_renamed(model, modules, probe, prefixes=prefixes) for prefixes in (True, False)]
    hits = [sum(saved in stored for saved in way.values()) for way in ways]
    ranked = sorted(range(len(ways)), key=lambda i: -hits[i])
    return {
        name: next((ways[i][name] for i in ranked if ways[i][name] in stored), ways[ranked[0]][name])
        for name in modules
    }


def is_converted(model: nn.Module) -> Callable[[str], bool]:
    """Whether transformers changes a parameter, by its path in memory, in more than its name as it saves."""
    _, converters = _as_saved(model, prefixes=True)
    return lambda path: any(converter.rename_source_key(path)[1] is not None for converter in converters)


def _renamed(model: nn.Module, modules: Sequence[str], probe: str, *, prefixes: bool) -> dict[str, str]:
    """What transformers renames modules to as it saves. prefixes: whether those that it may add are added."""
    # Converters merge experts into one tensor, which llm-compressor's single Linears are not.
    renamings, _ = _as_saved(model, prefixes=prefixes)
    return {name: _after(renamings, name + probe).removesuffix(probe) for name in modules}


def _as_saved(model: nn.Module, *, prefixes: bool) -> tuple[list[Any], list[Any]]:
    """What transformers does to names as it saves, in order, and those conversions that change tensors too."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange, WeightRenaming

    live: Any = model
    conversions: Any = get_model_conversion_mapping(live, add_legacy=False)
    renamings, converters = [], []
    for conversion in reversed(conversions):
        if not isinstance(conversion, WeightRenaming):
            converters.append(conversion.reverse_transform())
        elif prefixes or not isinstance(conversion, PrefixChange):
            renamings.append(conversion.reverse_transform())
    return renamings, converters


def _after(renamings: Sequence[Any], name: str) -> str:
    for renaming in renamings:
        renamed, matched = renaming.rename_source_key(name)
        name = name if matched is None else renamed
    return name


def tied(config: Mapping[str, Any], model: nn.Module | None) -> bool:
    """Whether a configuration ties the output embedding to the input embedding."""
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    if model is not None:
        return bool(getattr(model.config, "tie_word_embeddings", False))
    text = config.get("text_config")
    return bool(text.get("tie_word_embeddings", False)) if isinstance(text, Mapping) else False
