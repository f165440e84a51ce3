"""Why a tokenizer cannot be loaded, by the file that is none of a tokenizer's."""

from __future__ import annotations

from pathlib import Path

from quantaudit.common.reading.json_document import read_json
from quantaudit.common.reading.regular_files import CARD_BYTES

_CONTENT = "tokenizer.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
"""Further files of a tokenizer, each a JSON object."""
_INTERNAL = (TypeError, AttributeError, LookupError, AssertionError, UnicodeError)
"""What a loader raises where it did not expect a value: its text is about the loader, not about the file."""


def damaged_file(folder: Path) -> str | None:
    """Which file of a tokenizer is none, in words; None where all that there are can be read."""
    for name in (_CONTENT, *_SETTINGS):
        path = folder / name
        if path.is_file() and not (_is_tokenizer(path) if name == _CONTENT else _is_object(path)):
            return f"{name} is not a tokenizer's file"
    return None


def load_problem(folder: Path, error: Exception) -> str | None:
    """Why a tokenizer's loader failed, where its own words do not say it: a damaged file, or values of another kind."""
    damaged = damaged_file(folder)
    if damaged is None and isinstance(error, _INTERNAL):
        return "its files do not hold what a tokenizer's hold"
    return damaged


def _is_tokenizer(path: Path) -> bool:
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(path))
    except Exception:  # the library raises Exception itself
        return False
    return True


def _is_object(path: Path) -> bool:
    try:
        return isinstance(read_json(path, CARD_BYTES), dict)
    except (OSError, ValueError):  # a UnicodeDecodeError is a ValueError
        return False
