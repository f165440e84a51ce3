"""Chats as the model's template writes them: which turns and tools it is given, and what of them it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantaudit.corpus.images import plain
from quantaudit.corpus.rows import CorpusRow
from quantaudit.errors import CorpusError

Turns = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedChat:
    """A chat as its template writes it, as token ids: int64 [tokens].

    turns, tools: what the template was given. left_out: what of them it did not write.
    """

    ids: NDArray[np.int64]
    turns: Turns
    tools: list[dict[str, Any]] | None
    left_out: tuple[str, ...]


def render(row: CorpusRow, tokenizer: Any, where: str) -> RenderedChat:
    """A chat, written by the model's template. Raises CorpusError: templates refuse roles and orders."""
    tools = row.offered()

    def written(turns: Turns, tools: list[dict[str, Any]] | None = tools) -> str:
        return str(tokenizer.apply_chat_template(turns, tools=tools, tokenize=False))

    try:
        turns = _fitting(row, written)
        ids = tokenizer.apply_chat_template(turns, tools=tools, return_dict=True)["input_ids"]
        left_out = (*_left_out(turns, tools, written), *_unwritten(turns, written, where))
    except CorpusError:
        raise
    except Exception as error:  # templates raise whatever they like
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CorpusError(
            f"the model's chat template cannot write this chat: {reason}",
            where=where,
            hint="change its roles or their order; --special-tokens none writes chats as plain lines",
        ) from error
    return RenderedChat(ids=np.asarray(ids, np.int64), turns=turns, tools=tools, left_out=left_out)


def _fitting(row: CorpusRow, written: Callable[[Turns], str]) -> Turns:
    """Turns with the content that the template expects where there is none.

    Some templates ask whether it is none before they write calls; others would write the word None, or fail on it.
    """
    messages = row.messages or []
    silent = [_turn(message.model_dump(), plain(message), None) for message in messages]
    empty = [_turn(message.model_dump(), plain(message), "") for message in messages]
    if all(message.content is not None for message in messages):
        return empty
    try:
        text = written(silent)
    except CorpusError:
        raise
    except Exception:  # templates raise whatever they like
        return empty
    try:
        return empty if text.count("None") > written(empty).count("None") else silent
    except CorpusError:
        raise
    except Exception:
        return silent


def _turn(turn: dict[str, Any], text: str, missing: str | None) -> dict[str, Any]:
    return {**turn, "content": missing if turn["content"] is None else text}


def _left_out(turns: Turns, tools: list[dict[str, Any]] | None, written: Callable[..., str]) -> tuple[str, ...]:
    """What makes no difference to the text that the template writes."""
    calling = any("tool_calls" in turn for turn in turns)
    if not calling and tools is None:
        return ()
    text = written(turns)
    mute = [{key: item for key, item in turn.items() if key != "tool_calls"} for turn in turns]
    checks = [("tools", tools is not None, turns, None), ("calls", calling, mute, tools)]
    return tuple(name for name, present, given, offered in checks if present and _same(text, written, given, offered))


LONG = 24
"""Characters of a turn, white space apart, that no template has in itself."""
_OTHER = "Other words, 0123456789."


def _unwritten(turns: Turns, written: Callable[[Turns], str], where: str) -> tuple[str, ...]:
    """A note where the template leaves out the text of some turns. Raises CorpusError where it writes none of a chat's.

    A turn whose text is found in what is written is there. Of others, and of short ones where none is longer, the text
    is replaced, to see whether that makes a difference: templates may shorten, escape or move it.
    """
    said = [place for place, turn in enumerate(turns) if _bare(turn["content"])]
    text = written(turns)
    found = [place for place in said if _bare(turns[place]["content"]) in _bare(text)]
    sure = any(len(_bare(turns[place]["content"])) >= LONG for place in found)
    doubtful = [place for place in said if not sure or place not in found]
    ignored = [
        place for place in doubtful if _same(text, lambda given, _: written(given), _replaced(turns, place), None)
    ]
    if said and len(ignored) == len(said):
        raise CorpusError(
            "the model's chat template writes nothing of what is said in this chat",
            where=where,
            hint="give the model's own chat template; --special-tokens none writes chats as plain lines",
        )
    return ("turns",) if ignored else ()


def _bare(text: Any) -> str:
    return "".join(str(text or "").split())


def _replaced(turns: Turns, place: int) -> Turns:
    return [{**turn, "content": _OTHER} if i == place else turn for i, turn in enumerate(turns)]


def _same(text: str, written: Callable[..., str], turns: Turns, tools: list[dict[str, Any]] | None) -> bool:
    try:
        return text == written(turns, tools)
    except CorpusError:
        raise
    except Exception:  # a template that refuses them without looks at them
        return False
