"""Raw rows of any format as the fields of a `CorpusRow`: which column holds what, and chats in one form.

Files, tables and datasets all pass through `normalize`, so that the same sample is the same row wherever it lies. A
field that is null is a field that is not there: tables fill rows up with nulls, and JSON may spell them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantaudit.corpus.chat_form import chat, offered_tools, parsed, without_nulls
from quantaudit.errors import CorpusError

CONTENTS = ("text", "messages", "input_ids")
LABELS = ("id", "domain", "split")
CATEGORY = "category"
"""What datasets of many domains call them where they do not say `domain`, that of arXiv 2605.15572 among them."""
CHATS = ("conversations", "conversation")
"""Columns that hold chats under the name of ShareGPT."""
CONTINUED = ("prompt", "completion")
"""A text in two parts: written one after the other, as TRL does. Chats in both are one chat."""
PAIRS = (
    ("prompt", "response"),
    ("prompt", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("input", "output"),
)
"""What a user asks, and what an assistant answers: a chat of two turns."""
_MORE = {"instruction": ("input", "context"), "question": ("context",)}
"""What the user adds to the question, on a line of its own."""
_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
SOURCES = tuple(
    dict.fromkeys([*CONTENTS, *CHATS, *CONTINUED, *(n for pair in PAIRS for n in pair), "context", "history", *_SYSTEM])
)
"""All columns that content is made of."""
RECOGNIZED = (*SOURCES, *_TOOLS, *LABELS, CATEGORY)
SHAPE = 'a row is {"text": …}, {"messages": [{"role": …, "content": …}]} or {"input_ids": […]}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalized:
    """One row of any layout as fields of a `CorpusRow`, not yet validated.

    note: which other columns its content was put together from, if so.
    """

    fields: Any
    note: str | None = None

    @property
    def empty(self) -> bool:
        """Whether it has no content at all."""
        return isinstance(self.fields, dict) and not any(filled(self.fields.get(name)) for name in CONTENTS)


def normalize(raw: Any, column: str | None, *, where: str, how: str) -> Normalized:
    """A raw row as the fields of a `CorpusRow`.

    column: the one that was chosen, a dotted path for what is nested; None for the recognised ones. how: a spec that
    chooses one. Raises CorpusError where the row has no such column, or none that is recognised.
    """
    if not isinstance(raw, dict):
        return Normalized(fields=raw)
    row = without_nulls(raw)
    if column is not None:
        holder, value = _chosen(row, raw, column, where=where, how=how)
        name = _kind(value, column, where) if filled(value) else "text"
        content = {name: chat(value) if name == "messages" else value}
        return Normalized(fields={**_labels(row, column), **content, **_tools({**row, **holder}), **_image(row)})
    if "image" not in raw:
        check_columns(list(raw), None, where=where, how=how, hint=f"{SHAPE}; or choose")
    content, note = _content(row, where)
    return Normalized(fields={**_labels(row, None), **content, **_tools(row), **_image(row)}, note=note)


def check_columns(names: Sequence[str], column: str | None, *, where: str, how: str, hint: str = "choose") -> None:
    """Raises CorpusError naming the columns that there are, unless they hold what was chosen or is recognised."""
    listed = f"it has: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else "it has no columns"
    if column is not None:
        if column not in names and column.split(".")[0] not in names:
            raise CorpusError(f"no column {column}; {listed}", where=where, hint=f"choose one of them: {how}")
        return
    pairs = (CONTINUED, *PAIRS)
    if not ({*CONTENTS, *CHATS} & set(names) or any(set(pair) <= set(names) for pair in pairs)):
        raise CorpusError(
            f"no column {', '.join(CONTENTS[:-1])} or {CONTENTS[-1]}; {listed}",
            where=where,
            hint=f"{hint} the one that holds the text: {how}",
        )


def columns(names: Sequence[str], column: str | None) -> list[str]:
    """What has to be read of a table: the chosen column, or every recognised one, with labels and tools."""
    if column is None:
        return [name for name in names if name in RECOGNIZED]
    top = column if column in names else column.split(".")[0]
    return [name for name in names if name == top or name in (*LABELS, CATEGORY, *_TOOLS)]


def made_of(rows: Sequence[Normalized]) -> list[str]:
    """Notes on how the content of samples was made, with their number."""
    return [f"of {count:,} samples {note}" for note, count in Counter(row.note for row in rows if row.note).items()]


def filled(value: Any) -> bool:
    """Whether a value holds anything: white space alone is nothing."""
    return bool(value.strip() if isinstance(value, str) else value)


def _content(row: dict[str, Any], where: str) -> tuple[dict[str, Any], str | None]:
    """Content under its own name wherever that is filled; else from ShareGPT's column, else from a pair of columns."""
    under_own_names = {name: row[name] for name in CONTENTS if name in row}
    if any(filled(value) for value in under_own_names.values()):
        if "messages" in under_own_names:
            under_own_names["messages"] = chat(under_own_names["messages"])
        return under_own_names, None
    for name in CHATS:
        if filled(row.get(name)):
            return {"messages": _led(row, chat(row[name]))}, f"{name} were read as chats"
    if all(filled(row.get(name)) for name in CONTINUED):
        parts = [_said(row, name, where) for name in CONTINUED]
        note = "prompt and completion were read as one, the completion right after the prompt"
        if all(isinstance(part, str) for part in parts):
            return {"text": "".join(parts)}, note
        return {"messages": _led(row, [*_turns(parts[0], "user"), *_turns(parts[1], "assistant")])}, note
    for asked, answered in PAIRS:
        if filled(row.get(asked)) and filled(row.get(answered)):
            return {"messages": _pair(row, asked, answered, where)}, (
                f"{asked} and {answered} were read as a user's and an assistant's turn"
            )
    return under_own_names, None


def _pair(row: dict[str, Any], asked: str, answered: str, where: str) -> Any:
    question, answer = _said(row, asked, where), _said(row, answered, where)
    if isinstance(question, list) or isinstance(answer, list):
        return _led(row, [*_turns(question, "user"), *_turns(answer, "assistant")])
    more = [_said(row, name, where) for name in _MORE.get(asked, ()) if name != answered and filled(row.get(name))]
    if not all(isinstance(part, str) for part in more):
        raise CorpusError(f"a chat stands next to {asked}", where=where, hint="write the row as `messages`")
    return _led(row, [*_history(row), *_turns("\n".join([question, *more]), "user"), *_turns(answer, "assistant")])


def _history(row: dict[str, Any]) -> list[Any]:
    """Earlier questions and answers, as pairs."""
    turns = row.get("history")
    return [
        {"role": role, "content": said}
        for turn in (turns if isinstance(turns, list) else [])
        if isinstance(turn, list) and len(turn) == 2
        for role, said in zip(("user", "assistant"), turn, strict=True)
    ]


def _said(row: dict[str, Any], name: str, where: str) -> Any:
    """A column of a pair: a text, a number as text, or a chat's turns. Raises CorpusError for anything else."""
    value = row[name]
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        return value
    if isinstance(value, int | float):
        return str(value)
    raise CorpusError(
        f"column {name} holds {_name(value)}, not text", where=where, hint=f"write {name} as text, or the row as `text`"
    )


def _turns(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(chat(value))


def _led(row: dict[str, Any], turns: Any) -> Any:
    """A chat with the system's column as its first turn, where it has none of its own."""
    system = next((row[name] for name in _SYSTEM if filled(row.get(name))), None)
    first = turns[0] if isinstance(turns, list) and turns else None
    if system is None or not isinstance(first, dict) or first.get("role") == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]


def _labels(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """id, domain and split; numbers are names, and a number without fraction is one without a point."""
    labels = {name: _label(row[name]) for name in LABELS if name in row and name != column}
    if labels.get("domain") is None and column != CATEGORY:
        category = _label(row.get(CATEGORY))
        labels["domain"] = category if isinstance(category, str) else None
    return {name: value for name, value in labels.items() if value is not None}


def _label(value: Any) -> Any:
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return str(value) if isinstance(value, int | float) else value


def _tools(row: Mapping[str, Any]) -> dict[str, Any]:
    tools = next((row[name] for name in _TOOLS if filled(row.get(name))), None)
    return {} if tools is None else {"tools": offered_tools(tools)}


def _image(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"image": row["image"]} if "image" in row else {}


def _chosen(row: dict[str, Any], raw: dict[str, Any], column: str, *, where: str, how: str) -> tuple[Any, Any]:
    """(the record that holds the chosen column, its value). None for a value that is null, or nested in a null."""
    check_columns(list(raw), column, where=where, how=how)
    if column in raw:
        return row, row.get(column)
    holder: Any = row
    first, *rest = column.split(".")
    value = row.get(first)
    for name in rest:
        value = parsed(value)
        if value is None:
            return row, None
        if not isinstance(value, dict):
            raise CorpusError(f"{first} has nothing inside called {name}", where=where, hint=f"choose another: {how}")
        holder, value = value, value.get(name)
    return holder, value


def _kind(value: Any, column: str, where: str) -> str:
    """Text, a chat or token ids: what kind of content a value is."""
    if isinstance(value, str):
        return "messages" if column.split(".")[-1] in ("messages", *CHATS) else "text"
    if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        return "messages"
    if isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return "input_ids"
    raise CorpusError(
        f"column {column} holds {_name(value)}, not text, messages or token ids",
        where=where,
        hint="choose a column of strings, of chats [{role, content}], or of token ids",
    )


def _name(value: Any) -> str:
    inside = f" of {type(value[0]).__name__}" if isinstance(value, list) and value else ""
    return f"{type(value).__name__}{inside}"
