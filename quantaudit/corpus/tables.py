"""Which columns of a table hold what: the recognised names, or the one column that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quantaudit.corpus.rows import COLUMNS, CONTENTS
from quantaudit.errors import CorpusError


def choose(names: Sequence[str], column: str | None, *, where: str, how: str) -> str | None:
    """The column asked for; None where the recognised ones are taken.

    names: the columns that there are; how: a spec that chooses one. Raises CorpusError naming the columns.
    """
    listed = f"it has: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else "it has no columns"
    if column is not None and column not in names:
        raise CorpusError(f"no column {column}; {listed}", where=where, hint=f"choose one of them: {how}")
    if column is None and not set(CONTENTS) & set(names):
        raise CorpusError(
            f"no column {', '.join(CONTENTS[:-1])} or {CONTENTS[-1]}; {listed}",
            where=where,
            hint=f"choose the one that holds the text: {how}",
        )
    return column


def columns(names: Sequence[str], chosen: str | None) -> list[str]:
    """What has to be read of a table: the chosen content, or every recognised one, with domain and split."""
    contents = CONTENTS if chosen is None else (chosen,)
    return [name for name in names if name in contents or (name in COLUMNS and name not in CONTENTS)]


def record(row: dict[str, Any], chosen: str | None, *, where: str) -> dict[str, Any]:
    """A row as a record of the recognised names, without nulls; a chosen column is named by what it holds."""
    known = {key: without_nulls(row[key]) for key in columns(list(row), chosen) if row[key] is not None}
    if chosen is not None and chosen in known:
        value = known.pop(chosen)
        known[_kind(value, chosen, where)] = value
    return known


def without_nulls(value: Any) -> Any:
    """Nested records without the fields that a table fills up with nulls, which a chat template would take for set."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _kind(value: Any, column: str, where: str) -> str:
    """Text, a chat or token ids, told from a value."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return "messages"
    if isinstance(value, list) and all(isinstance(item, int) for item in value):
        return "input_ids"
    raise CorpusError(
        f"column {column} holds {type(value).__name__}, not text, messages or token ids",
        where=where,
        hint="choose a column of strings, of chats [{role, content}], or of token ids",
    )
