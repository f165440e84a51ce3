"""Which tokens of a chat the model itself would write: the assistant's turns, as the chat template renders them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantaudit.errors import CorpusError


def assistant_tokens(
    turns: list[dict[str, Any]], ids: NDArray[np.int64], tokenizer: Any, tools: list[dict[str, Any]] | None = None
) -> NDArray[np.bool_] | None:
    """bool [tokens]: what follows the assistant's header, up to the end of its turn.

    turns: role and content; tools: those offered; ids: the whole chat as the template renders it. Few templates mark
    what is generated, so the chat is rendered up to each turn and beyond it. None where that does not give the chat's
    own beginning (a template that rewrites earlier turns), or where the assistant says nothing.
    """
    mask = np.zeros(len(ids), bool)
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start = _rendered(turns[:index], tokenizer, tools, prompt=True)
        end = _rendered(turns[: index + 1], tokenizer, tools, prompt=False)
        if start is None or end is None or not (_begins(ids, start) and _begins(ids, end)):
            return None
        mask[len(start) : len(end)] = True
    return mask if mask.any() else None


def _rendered(
    turns: list[dict[str, Any]], tokenizer: Any, tools: list[dict[str, Any]] | None, *, prompt: bool
) -> NDArray[np.int64] | None:
    """None where the template refuses so short a chat, such as one without a user."""
    if not turns:
        return np.empty(0, np.int64)
    try:
        encoded = tokenizer.apply_chat_template(turns, tools=tools, return_dict=True, add_generation_prompt=prompt)
    except CorpusError:
        raise
    except Exception:  # templates raise whatever they like
        return None
    return np.asarray(encoded["input_ids"], np.int64)


def _begins(ids: NDArray[np.int64], start: NDArray[np.int64]) -> bool:
    return bool(len(start) <= len(ids) and np.array_equal(ids[: len(start)], start))
