"""A model's configuration by its settings: as transformers completes it, in one spelling, with defaults filled in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from quantaudit.errors import ModelError

_NOT_THE_MODEL = frozenset(
    {
        *("transformers_version", "transformers_weights", "name_or_path", "dtype", "torch_dtype", "use_bfloat16"),
        *("quantization_config", "compression_config", "architectures", "attn_implementation", "tokenizer_class"),
        *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params", "prefix"),
        *("output_hidden_states", "output_attentions", "output_router_logits", "return_dict", "use_return_dict"),
        *("keys_to_ignore_at_inference", "use_cache", "torchscript", "chunk_size_feed_forward", "pretraining_tp"),
        *("gradient_checkpointing", "loss_type", "router_aux_loss_coef", "router_z_loss_coef", "aux_loss_alpha"),
        *("router_jitter_noise", "initializer_range", "initializer_factor", "init_std"),
    }
)
"""Settings that take no part in what a model computes: who wrote it and in which dtype, what is returned, training."""
_DROPOUT = ("dropout", "_drop", "_pdrop", "layerdrop")


def completed(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config.json that take part in what is computed, by path: `rope_parameters.rope_theta`.

    What is null is left out, lists are values. A type of model that this transformers does not have, or whose code
    comes with the checkpoint, is as it was written. Raises ModelError where transformers refuses a setting.
    """
    return flat(_as_read(raw))


@lru_cache(maxsize=8)
def defaults(model_type: str) -> dict[str, Any]:
    """Settings of a type of model where nothing is given, those that are null too; empty for an unknown type."""
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return {}
    try:
        return flat(CONFIG_MAPPING[model_type]().to_dict(), nulls=True)
    except Exception:  # some classes ask for arguments, in whichever way
        return {}


def flat(settings: Mapping[str, Any], above: str = "", *, nulls: bool = False) -> dict[str, Any]:
    """Every setting by its path, as a value of JSON, but for those that take no part."""
    return {path: json.loads(json.dumps(value, default=str)) for path, value in _walk(settings, above, nulls)}


def _walk(settings: Mapping[str, Any], above: str, nulls: bool) -> Iterator[tuple[str, Any]]:
    for name, value in sorted((str(key), value) for key, value in settings.items()):
        if name == "type" and "rope_type" in settings:
            continue  # its older spelling
        if name.startswith("_") or name in _NOT_THE_MODEL or name.endswith(_DROPOUT):
            continue
        if isinstance(value, Mapping) and value:
            yield from _walk(value, f"{above}{name}.", nulls)
        elif isinstance(value, float) and not math.isfinite(value):
            yield f"{above}{name}", str(value)
        elif nulls or value not in (None, {}):
            yield f"{above}{name}", value


def _as_read(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    from transformers import CONFIG_MAPPING

    if str(raw.get("model_type")) not in CONFIG_MAPPING or "auto_map" in raw:
        return raw
    left_out = ("quantization_config", "compression_config")
    return _read(json.dumps({key: value for key, value in raw.items() if key not in left_out}, default=str))


@lru_cache(maxsize=8)
def _read(text: str) -> Mapping[str, Any]:
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    plain, before = json.loads(text), logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        settings: Mapping[str, Any] = CONFIG_MAPPING[plain["model_type"]].from_dict(plain).to_dict()
    except Exception as error:  # classes check their settings in ways of their own
        reason = " ".join(str(error).split())
        raise ModelError(
            f"transformers refuses its settings: {reason[:300]}",
            where="config.json",
            hint="give the config.json that belongs to these weights",
        ) from error
    finally:
        logging.set_verbosity(before)
    return settings
