"""What lies next to an artifact's weights, as transformers reads it: tokenizer, chat template, generation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantaudit.common.logs import compiled_prints_aside
from quantaudit.conform.artifacts.records import SideFiles
from quantaudit.conform.artifacts.tensors import read_json
from quantaudit.errors import ModelError
from quantaudit.model.tokenizer_files import damaged_file, load_problem

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "tekken.json")
_GENERATION = "generation_config.json"


def read_side_files(folder: Path) -> SideFiles:
    """Those that there are; no code of the artifact is run, and nothing is asked of another machine.

    Raises ModelError where the generation config is none.
    """
    generation = _generation(folder) if (folder / _GENERATION).is_file() else None
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        damaged = damaged_file(folder)
        return SideFiles(generation=generation, problem=damaged, damaged=damaged is not None)
    from transformers import AutoTokenizer

    from quantaudit.model.loading.input_digests import template_digest, tokenizer_parts

    try:
        with compiled_prints_aside():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # parsers of other people's files raise whatever they like
        return _not_loaded(folder, error, generation)
    return SideFiles(generation=generation, tokenizer=tokenizer_parts(tokenizer), template=template_digest(tokenizer))


def _not_loaded(folder: Path, error: Exception, generation: dict[str, Any] | None) -> SideFiles:
    """A tokenizer of code of its own, or of a library that is not installed here, may be whole; any other is not."""
    elsewhere = isinstance(error, ImportError) or "trust_remote_code" in str(error)
    reason = None if elsewhere else load_problem(folder, error)
    reason = reason or next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return SideFiles(generation=generation, problem=reason, damaged=not elsewhere)


def _generation(folder: Path) -> dict[str, Any]:
    from transformers import GenerationConfig

    from quantaudit.model.loading.input_digests import generation_settings

    settings = read_json(folder / _GENERATION)
    if not isinstance(settings, dict):
        raise ModelError(
            "is not a JSON object", where=str(folder / _GENERATION), hint="copy it from the model, or take it away"
        )
    return generation_settings(GenerationConfig.from_dict(settings))
