"""Whether two models can be compared token by token: one tokenizer, and logits that stand for the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quantaudit.card.text import token
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import ModelError
from quantaudit.model.loading.input_digests import tokenizer_parts

_ONE_TOKENIZER = "compare models that have one tokenizer: next-token distributions over other tokens have no KL"


def check_same_tokens(
    ours: Any,
    theirs: Any,
    chosen: Sequence[TokenizedSample],
    tokenized: Callable[[Any], Sequence[TokenizedSample]],
    *,
    where: str,
) -> None:
    """Raises ModelError where the other model's tokenizer makes other tokens of the text than the base's.

    ours, theirs: tokenizers; chosen: samples as they run, cut. tokenized: a tokenizer → all samples of the corpus.
    The base's chat template writes the chats of both.
    """
    used = np.unique(np.concatenate([sample.ids for sample in chosen])).tolist()
    names = [tokenizer.convert_ids_to_tokens(used) for tokenizer in (ours, theirs)]
    for number, mine, other in zip(used, *names, strict=True):
        if mine != other:
            raise ModelError(
                f"its tokenizer is another than the base's: token {number:,} is {token(other)}, not {token(mine)}",
                where=where,
                hint=_ONE_TOKENIZER,
            )
    if _is_one(ours, theirs):
        return
    alike = copy.copy(theirs)
    alike.chat_template = ours.chat_template
    again = {sample.index: sample for sample in tokenized(alike)}
    for sample in chosen:
        ids = again[sample.index].ids[: len(sample.ids)]
        if not np.array_equal(ids, sample.ids):
            raise ModelError(
                f"its tokenizer splits the text otherwise than the base's, such as sample {sample.id}",
                where=where,
                hint=_ONE_TOKENIZER,
            )


def _is_one(ours: Any, theirs: Any) -> bool:
    """Whether two tokenizers are known to do the same, without trying; of one in Python that is not known."""
    fast = type(ours) is type(theirs) and ours.is_fast
    return fast and tokenizer_parts(ours) == tokenizer_parts(theirs)


def common_width(widths: tuple[int, int], tokenizers: Sequence[Any], where: str) -> int:
    """How many of the first logits both models have. widths: how many they have; tokenizers: of both.

    Raises ModelError where one tokenizer has tokens beyond these: what is left out has to stand for nothing.
    """
    common = min(widths)
    reach = max(max(tokenizer.get_vocab().values()) + 1 for tokenizer in tokenizers)
    if widths[0] != widths[1] and reach > common:
        raise ModelError(
            f"has {widths[1]:,} logits for a token where the base has {widths[0]:,}, and its tokenizer, or the base's, "
            f"has tokens up to number {reach - 1:,}",
            where=where,
            hint="compare models with vocabularies of one size",
        )
    return common


def check_reach(chosen: Sequence[TokenizedSample], width: int, context: int | None, where: str) -> None:
    """Raises ModelError where a model has no room for the tokens: their numbers, or so many of them."""
    highest = max(int(sample.ids.max()) for sample in chosen)
    if highest >= width:
        raise ModelError(
            f"token {highest:,} of the text is beyond the {width:,} that are compared",
            where=where,
            hint="give text, or token ids that both models have",
        )
    longest = max(len(sample.ids) for sample in chosen)
    if context is not None and longest > context:
        raise ModelError(
            f"samples of {longest:,} tokens are beyond its context of {context:,}",
            where=where,
            hint=f"add --max-length {context}",
        )
