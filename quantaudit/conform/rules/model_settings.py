"""Rules about config.json, tokenizer, chat template and generation config: the artifact's next to the model's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from quantaudit.card.schema import Card, Finding
from quantaudit.common.outcome import Severity
from quantaudit.conform.artifacts.records import Artifact, SideFiles
from quantaudit.conform.rules.catalogue import finding
from quantaudit.errors import ModelError
from quantaudit.model.configuration import completed, defaults
from quantaudit.provenance import InputDigests

RELATIVE = 1e-6
"""Difference up to which two numbers are one: a GGUF holds those of its configuration in float32."""
_TIED = "tie_word_embeddings"
_IN_USE = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "unk_token_id",
           "decoder_start_token_id", "max_position_embeddings", "model_max_length")  # fmt: skip
"""Settings that say how a model is used, and do not change what it makes of given token ids."""
_BY_LENGTH = ("dynamic", "yarn", "longrope")
"""Kinds of rotary positions that are computed from `max_position_embeddings`."""
_TEXT_TO_IDS = ("model", "normalizer", "pre_tokenizer")
"""Parts of a tokenizer that decide which ids a text becomes."""
_UNSET = object()


def model_settings(artifact: Artifact, card: Card) -> list[Finding]:
    """QA624, QA625 and QA628: what an artifact holds in addition to its weights, as far as it holds it."""
    inputs = card.model.inputs
    if artifact.config is None:
        return []
    if inputs is None or inputs.configuration is None:
        return [_not_on_card("its config.json", "the settings of the model's configuration")]
    return [
        *_settings(artifact, card, inputs.configuration),
        *(_side_files(artifact.side, inputs) if artifact.side is not None else ()),
    ]


def _not_on_card(what: str, lacking: str) -> Finding:
    return finding("QA628", None, f"{what} cannot be compared: the card does not hold {lacking}")


# config.json ----------------------------------------------------------------------------------------------------------


def _settings(artifact: Artifact, card: Card, measured: Mapping[str, Any]) -> Iterator[Finding]:
    config = artifact.config
    assert config is not None
    try:
        settings = completed(config)
    except ModelError as error:
        yield finding("QA624", None, f"config.json: {error.message}")
        return
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    if architecture != card.model.architecture:
        yield _other("architectures", architecture, card.model.architecture)
    kind, measured_kind = settings.get("model_type"), measured.get("model_type")
    if kind != measured_kind:
        yield _other("model_type", kind, measured_kind)
    # Settings of another type of model have other defaults, and what is not written is only a consequence.
    usual = defaults(str(kind)) if kind == measured_kind else {}
    for path in sorted({*settings, *measured} - {"model_type"}):
        one, two = settings.get(path, _UNSET), measured.get(path, _UNSET)
        if _same(one, two) or ((kind != measured_kind or not usual) and _UNSET in (one, two)):
            continue
        known = any(path == name or path.startswith(f"{name}.") or name.startswith(f"{path}.") for name in usual)
        if _UNSET in (one, two) and path in usual and _same(two if one is _UNSET else one, usual[path]):
            continue  # another version of transformers completed it
        if path.endswith(_TIED) and one is False and _holds_head(artifact):
            continue  # llm-compressor unties a head that it quantizes
        yield _other(path, one, two, severity=_severity(path, {**measured, **settings}, known or not usual))
    yield from _contradictions(config, settings)


def _severity(path: str, settings: Mapping[str, Any], known: bool) -> Severity | None:
    leaf = path.rpartition(".")[2]
    if leaf == "max_position_embeddings":
        kinds = {value for name, value in settings.items() if name.endswith("rope_type")}
        return "error" if kinds & set(_BY_LENGTH) or not kinds else "warning"
    return "warning" if leaf in _IN_USE or not known else None


def _other(path: str, one: Any, two: Any, *, severity: Severity | None = None) -> Finding:
    return finding(
        "QA624", None, f"`{path}` of config.json is {_spell(one)}, on the card {_spell(two)}", severity=severity
    )


def _contradictions(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[Finding]:
    """An older spelling next to the newer one, with another value: not all engines read the same of the two."""
    parts = {"": config, **{f"{key}.": part for key, part in config.items() if isinstance(part, Mapping)}}
    for above, part in parts.items():
        older = part.get("rope_theta")
        read = [value for path, value in settings.items() if path.startswith(above) and path.endswith(".rope_theta")]
        if older is not None and read and not any(_same(older, value) for value in read):
            text = (
                f"`{above}rope_theta` of config.json is {_spell(older)}, and `{above}rope_parameters` says "
                f"{_spell(read[0])}: transformers reads the second, other engines may read the first"
            )
            yield finding("QA624", None, text, severity="warning")


def _holds_head(artifact: Artifact) -> bool:
    """Whether the files hold an output embedding of their own."""
    checkpoint = artifact.checkpoint
    if checkpoint is None:
        return True
    return any(
        name.rpartition(".")[0] == saved
        for name in checkpoint.tensors
        for module, saved in checkpoint.saved.items()
        if module.rpartition(".")[2] == "lm_head"
    )


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    if isinstance(one, int | float) and isinstance(two, int | float):
        return math.isclose(one, two, rel_tol=RELATIVE)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)


def _spell(value: Any) -> str:
    if value is _UNSET or value is None:
        return "not set"
    text = f"`{value}`"
    return text if len(text) <= 80 else f"{text[:78]}…`"


# Tokenizer, chat template, generation config --------------------------------------------------------------------------


def _side_files(side: SideFiles, inputs: InputDigests) -> Iterator[Finding]:
    if side.problem is not None:
        severity: Severity = "error" if side.damaged else "warning"
        yield finding("QA625", None, f"its tokenizer cannot be loaded: {side.problem}", severity=severity)
    if side.tokenizer is not None:
        yield from _tokenizer(side, inputs)
    measured = inputs.generation_settings
    if side.generation is not None and measured is not None:
        for name in _differing(side.generation, measured):
            one, two = side.generation.get(name), measured.get(name)
            yield finding(
                "QA625",
                None,
                f"`{name}` of generation_config.json is {_spell(one)}, on the card {_spell(two)}",
                severity="warning",
                why="It changes which tokens are drawn and where an answer ends, not what is computed for given ones.",
            )


def _tokenizer(side: SideFiles, inputs: InputDigests) -> Iterator[Finding]:
    assert side.tokenizer is not None
    parts = inputs.tokenizer_parts
    if parts is None:
        return  # a model in memory was measured on token ids
    differing = [name for name in _differing(side.tokenizer, parts) if name != "added_tokens"]
    if differing:
        severe = any(name in _TEXT_TO_IDS for name in differing)
        yield finding(
            "QA625",
            None,
            f"its tokenizer is another than the model's: {', '.join(differing)}",
            severity="error" if severe else "warning",
        )
    elif side.tokenizer.get("added_tokens") != parts.get("added_tokens"):
        yield finding("QA625", None, "its tokenizer has other added tokens than the model's")
    if side.template != inputs.chat_template:
        how = "has no chat template, unlike the model" if side.template is None else "has another chat template"
        yield finding(
            "QA625",
            None,
            f"its tokenizer {how}{'' if side.template is None else ' than the model'}",
            severity="warning",
            why="Conversations become other token ids than those that were measured; what is computed for given ids is "
            "the same.",
        )


def _differing(one: Mapping[str, Any], two: Mapping[str, Any]) -> Iterable[str]:
    return [name for name in sorted({*one, *two}) if not _same(one.get(name), two.get(name))]
