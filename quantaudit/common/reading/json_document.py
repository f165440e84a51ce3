"""JSON that others wrote, within limits of depth; where a file decides, no key is given twice and no number is NaN."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from quantaudit.common.reading.regular_files import read_text

DEEPEST = 100
"""Levels of nesting; a configuration has six, a corpus row with calls of tools a dozen."""
MOST_DIGITS = 100
"""Of a whole number: settings of tokenizers have 31, for no limit."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def read_json(path: Path, limit: int, *, unique: bool = False) -> Any:
    """A JSON file of at most `limit` bytes. Raises OSError and ValueError, with the reason."""
    return parse_json(read_text(path, limit), unique=unique)


def parse_json(text: str, *, unique: bool = False) -> Any:
    """JSON as Python values. unique: refuse keys that are given twice, as where a file decides.

    NaN and Infinity pass, as Python writes them: configurations of published models have them. Raises ValueError, with
    the reason.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    except ValueError as error:
        # Python reads whole numbers of 4,300 digits at most, and says so with advice for programmers.
        raise ValueError(str(error).partition(":")[0] if "digits" in str(error) else str(error)) from error
    _check_depth(value)
    return value


def check_json(text: str) -> None:
    """Refuse JSON in which a key is given twice, or a number is NaN, infinite or of more digits than any has.

    Builds nothing. Raises ValueError.
    """
    try:
        json.loads(text, object_pairs_hook=_nothing, parse_constant=_no_constant, parse_int=_short)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _nothing(pairs)
    return dict(pairs)


def _nothing(pairs: list[tuple[str, Any]]) -> None:
    names = {name for name, _ in pairs}
    if len(names) < len(pairs):
        listed = [name for name, _ in pairs]
        again = next(name for name in names if listed.count(name) > 1)
        raise ValueError(f"key {again[:80]!r} is given twice: the first is silently lost")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number that JSON has")


def _short(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits, where {MOST_DIGITS} is the most")
    return int(digits)


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(DEEPEST + 1):
        level = [item for container in level for item in _children(container) if isinstance(item, dict | list)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def check_text(text: str, value: Any) -> None:
    """Refuse JSON of which an escape stands for half of a character, which no file that is written later can hold.

    value: what the text was parsed to. Raises ValueError.
    """
    if _HALF.search(text) is None:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is not text") from error


def _children(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container if isinstance(container, list) else ()
