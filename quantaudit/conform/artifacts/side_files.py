"""What lies next to an artifact's weights, as transformers reads it: tokenizer, chat template, generation config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantaudit.conform.artifacts.records import SideFiles
from quantaudit.conform.artifacts.tensors import read_json

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model", "tekken.json")
_GENERATION = "generation_config.json"


def read_side_files(folder: Path) -> SideFiles:
    """Those that there are; no code of the artifact is run, and nothing is asked of another machine."""
    generation = _generation(folder) if (folder / _GENERATION).is_file() else None
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        return SideFiles(generation=generation)
    from transformers import AutoTokenizer

    from quantaudit.model.loading.input_digests import template_digest, tokenizer_parts

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # parsers of other people's files raise whatever they like
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return SideFiles(generation=generation, problem=reason)
    return SideFiles(generation=generation, tokenizer=tokenizer_parts(tokenizer), template=template_digest(tokenizer))


def _generation(folder: Path) -> dict[str, Any] | None:
    from transformers import GenerationConfig

    from quantaudit.model.loading.input_digests import generation_settings

    settings = read_json(folder / _GENERATION)
    return generation_settings(GenerationConfig.from_dict(settings)) if isinstance(settings, dict) else None
