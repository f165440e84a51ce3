"""Which class a checkpoint is loaded as: the one that its configuration names, where that is a language model."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PretrainedConfig,
)

from quantaudit.errors import ModelError
from quantaudit.provenance import Doubt

_LANGUAGE_MODELS: tuple[tuple[Any, Any], ...] = (
    (MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM),
    (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoModelForImageTextToText),
    (MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForMultimodalLM),
)
"""Classes of language models by their configurations, and what loads them."""
HINT = "give a checkpoint of a causal language model, of text alone or with images"


def auto_class(config: PretrainedConfig, *, where: str) -> Any:
    """What loads the class that config.json names; where it names none that is known, the fullest of its model type.

    A checkpoint of vision and language is loaded whole, and not as its text model alone. where: the checkpoint, for
    errors. Raises ModelError where the class it names predicts no next token: an encoder, a classifier, a sequence to
    sequence model.
    """
    _refuse_sequence_to_sequence(config, where)
    named = named_class(config)
    for mapping, auto in _LANGUAGE_MODELS:
        if named is not None and named in _names(mapping, config):
            return auto
    _refuse_other_heads(config, named, where)
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    only_multimodal = (
        type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    )
    return AutoModelForMultimodalLM if only_multimodal else AutoModelForCausalLM


def named_class(config: PretrainedConfig) -> str | None:
    """The class of model in config.json's `architectures`; None where it says nothing."""
    return next(iter(config.architectures or []), None)


def class_doubts(config: PretrainedConfig, model: nn.Module) -> list[Doubt]:
    """Whether the class that was loaded is another one than config.json names."""
    named, loaded = named_class(config), type(model).__name__
    if named is None or named == loaded:
        return []
    return [Doubt(kind="class", text=f"config.json names the class {named}, and {loaded} was loaded")]


def takes_images(config: PretrainedConfig) -> bool:
    """Whether models of this configuration can be given images."""
    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _names(mapping: Any, config: PretrainedConfig) -> set[str]:
    """Classes of a mapping that go with this configuration."""
    if type(config) not in mapping:
        return set()
    classes = mapping[type(config)]
    return {cls.__name__ for cls in (classes if isinstance(classes, tuple) else (classes,))}


def _refuse_sequence_to_sequence(config: PretrainedConfig, where: str) -> None:
    text: Any = config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(text, "is_encoder_decoder", False):
        name = named_class(config) or config.model_type
        raise ModelError(
            f"{name} is an encoder with a decoder, not a decoder-only language model",
            where=where,
            hint=HINT,
        )


def _refuse_other_heads(config: PretrainedConfig, named: str | None, where: str) -> None:
    """A class of transformers that is no language model. A bare decoder may have a tied head, and goes on."""
    named_cls: Any = getattr(transformers, named, None) if named else None
    bare = named is not None and named.endswith("Model") and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if named_cls is not None and not bare and not _is_language_model(named_cls.__name__):
        raise ModelError(
            f"config.json names the class {named}, which does not predict the next token", where=where, hint=HINT
        )


def _is_language_model(name: str) -> bool:
    """Whether a class is a language model, if of another configuration than the checkpoint's."""
    mappings = [mapping._model_mapping.values() for mapping, _ in _LANGUAGE_MODELS]
    return any(name in (classes if isinstance(classes, tuple) else (classes,)) for m in mappings for classes in m)
