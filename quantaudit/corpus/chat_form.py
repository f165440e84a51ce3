"""Chats in one form, OpenAI's: `{role, content}` with `tool_calls`, whatever a corpus calls them.

Understood are OpenAI's chats (old and new function calls, arguments as an object or as JSON), ShareGPT's `from` and
`value`, columns of roles and contents, and either as JSON in a string. What is not understood is left unmodified, for
the row's validation to refuse with its place.
"""

from __future__ import annotations

import json
from typing import Any

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
}
"""ShareGPT's speakers, where their names differ from OpenAI's roles."""
_CALLING = ("function_call", "tool_call")
"""Speakers of ShareGPT whose whole turn is a call."""
_TEXT_PARTS = ("input_text", "output_text", "refusal")


def without_nulls(value: Any) -> Any:
    """A value without the fields that are null, at any depth: a chat template would take them for set."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def parsed(value: Any) -> Any:
    """What a string holds as JSON, if that is a list or an object; any other value unmodified."""
    if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
        return value
    try:
        return without_nulls(json.loads(value))
    except (ValueError, RecursionError):
        return value


def chat(value: Any) -> Any:
    """A chat as a list of turns in OpenAI's form."""
    value = parsed(value)
    if isinstance(value, dict):
        inner = next((value[name] for name in ("messages", "conversations") if name in value), None)
        return chat(inner) if inner is not None else _rows(value)
    return [_turn(turn) if isinstance(turn, dict) else turn for turn in value] if isinstance(value, list) else value


def offered_tools(value: Any) -> Any:
    """Tools as `{"type": "function", "function": {…}}`, the form that chat templates are given."""
    value = parsed(value)
    if isinstance(value, dict):
        value = [value]
    return [_tool(parsed(tool)) for tool in value] if isinstance(value, list) else value


def _tool(tool: Any) -> Any:
    if not isinstance(tool, dict) or "function" in tool or "name" not in tool:
        return tool
    return {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}


def _rows(value: dict[str, Any]) -> Any:
    """A chat that is stored as columns, {"role": […], "content": […]}."""
    lists = [item for item in value.values() if isinstance(item, list)]
    if not lists or len(lists) < len(value) or len({len(item) for item in lists}) > 1:
        return [_turn(value)]
    rows = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return [_turn(without_nulls(row)) for row in rows]


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """One turn: role and content first, then calls, then whatever else a template may read."""
    speaker = turn.get("role", turn.get("from"))
    role = speaker
    if isinstance(speaker, str):
        role = ROLES.get(speaker.lower(), speaker if "role" in turn else speaker.lower())
    said = next(((name, turn[name]) for name in ("content", "value", "text") if name in turn), None)
    content, calls = said[1] if said else None, _calls(turn)
    if role in _CALLING:
        role = "assistant"
        if called := _calls({"tool_calls": content}):
            content, calls = None, called
    used = {
        "role",
        "content",
        "tool_calls",
        "function_call",
        *(("from",) if "role" not in turn else ()),
        *(said or ())[:1],
    }
    content = _content(role, content)
    plain_turn = (
        {"role": role} | ({} if content is None else {"content": content}) | ({"tool_calls": calls} if calls else {})
    )
    return {**plain_turn, **{key: item for key, item in turn.items() if key not in used}}


def _content(role: Any, content: Any) -> Any:
    if role == "tool" and (content is None or isinstance(content, dict | int | float)):
        return "" if content is None else json.dumps(content, ensure_ascii=False)
    if isinstance(content, dict):
        content = [content]
    return [_part(part) for part in content] if isinstance(content, list) else content


def _part(part: Any) -> Any:
    """A part of a turn, text of any name as text."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        return part
    if part.get("type") in _TEXT_PARTS:
        return {"type": "text", "text": part.get("text", part.get("refusal"))}
    return {"type": "text", **part} if "type" not in part and "text" in part else part


def _calls(turn: dict[str, Any]) -> list[Any]:
    """The calls of a turn, the older `function_call` among them."""
    calls = parsed(turn.get("tool_calls") or turn.get("function_call") or [])
    calls = [calls] if isinstance(calls, dict) else calls
    return [_call(call) for call in calls] if isinstance(calls, list) else []


def _call(call: Any) -> Any:
    """A call whose arguments are an object: that is what chat templates expect, and what servers give them."""
    call = parsed(call)
    if not isinstance(call, dict):
        return call
    if "function" not in call and "name" in call:
        call = {"type": "function", "function": call}
    function = call.get("function")
    if isinstance(function, dict):
        arguments = parsed(function.get("arguments", {}))
        call = {**call, "function": {**function, "arguments": {} if arguments == "" else arguments}}
    return call
