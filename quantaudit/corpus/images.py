"""Samples with images, made ready by the model's own processor: token ids with placeholders, and their pixels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantaudit.common.choices import SpecialTokens
from quantaudit.corpus.rows import CorpusRow, Message
from quantaudit.errors import CorpusError


def plain(message: Message, placeholder: str = "") -> str:
    """A turn's text, each image in it a placeholder."""
    if isinstance(message.content, str):
        return message.content
    return "".join(part.text if part.type == "text" else placeholder for part in message.content or ())


def plain_chat(messages: list[Message], placeholder: str = "") -> str:
    """A chat as `role: content` lines, each image a placeholder, calls of tools as JSON after the content."""
    return "\n".join(f"{message.role}: {plain(message, placeholder)}{_calls(message)}" for message in messages)


def _calls(message: Message) -> str:
    return "".join(json.dumps(call.get("function", call), ensure_ascii=False) for call in message.tool_calls)


@dataclass(frozen=True, slots=True)
class Pictures:
    """A row with its images, encoded again whenever it is run: the pixels of a whole corpus would not fit in memory.

    With a chat template, the images and their text are one turn of a user; else placeholders before the text.
    """

    row: CorpusRow
    processor: Any
    special_tokens: SpecialTokens
    where: str

    def ids(self) -> NDArray[np.int64]:
        """int64 [tokens], the tokens that stand for images included."""
        return np.asarray(self._encode()["input_ids"][0], np.int64)

    def inputs(self, tokens: int) -> dict[str, Any]:
        """What the model is given with the first `tokens` ids: torch tensors by argument, such as pixel_values.

        Those with one column for each token, [1, tokens], are cut like the ids.
        """
        encoded = self._encode()
        shape = encoded.pop("input_ids").shape
        encoded.pop("attention_mask", None)
        return {name: value[:, :tokens] if value.shape == shape else value for name, value in encoded.items()}

    def least(self, ids: NDArray[np.int64]) -> int:
        """Tokens that cannot be cut away: those up to the last one that stands for an image."""
        places = np.flatnonzero(self.stand_ins(ids))
        return int(places[-1]) + 1 if len(places) else 0

    def stand_ins(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """bool [tokens]: which of them stand for images."""
        return np.isin(ids, [i for i in self.processor.image_token_ids if i is not None])

    def check(self, ids: NDArray[np.int64], limit: int) -> None:
        """Raises CorpusError unless the images fit into `limit` tokens."""
        if self.least(ids) > limit:
            raise CorpusError(
                f"its images end at token {self.least(ids):,}, beyond the limit of {limit:,}",
                where=self.where,
                hint="raise --max-length, or give smaller images",
            )

    def _encode(self) -> dict[str, Any]:
        assert self.row.pictures is not None
        paths = [str(picture.path) for picture in self.row.pictures]
        try:
            if self.special_tokens == "auto" and self.processor.chat_template:
                encoded = self.processor.apply_chat_template(
                    _turns(self.row, paths), tokenize=True, return_dict=True, return_tensors="pt"
                )
            else:
                from transformers.image_utils import load_image

                encoded = self.processor(
                    text=[_plain(self.row, self.processor.image_token)],
                    images=[[load_image(path) for path in paths]],
                    add_special_tokens=self.special_tokens == "auto",
                    return_tensors="pt",
                )
        except (ValueError, TypeError, OSError, RuntimeError, LookupError, AttributeError, StopIteration) as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CorpusError(
                f"the model's processor cannot take this row: {reason}",
                where=self.where,
                hint="check its images, and that its text holds no placeholders for others",
            ) from error
        return dict(encoded)


def _turns(row: CorpusRow, paths: list[str]) -> list[dict[str, Any]]:
    """The row as a chat, its images named by their paths, in order."""
    if not row.messages:
        images = [{"type": "image", "path": path} for path in paths]
        return [{"role": "user", "content": [*images, {"type": "text", "text": row.text}]}]
    left = iter(paths)
    turns = []
    for message in row.messages:
        turn = message.model_dump()
        if isinstance(message.content, str):
            turn["content"] = [{"type": "text", "text": message.content}]
        else:
            turn["content"] = [
                {"type": "image", "path": next(left)} if part.type == "image" else part.model_dump()
                for part in message.content or ()
            ]
        turns.append(turn)
    return turns


def _plain(row: CorpusRow, placeholder: str) -> str:
    if row.messages:
        return plain_chat(row.messages, placeholder)
    return placeholder * len(row.pictures or ()) + (row.text or "")
