"""Forward passes that begin at a decoder block: what the blocks before it returned is remembered from another pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import MeasurementError
from quantaudit.model.forward.batches import batches, forward
from quantaudit.model.forward.hooks import watch_outputs
from quantaudit.simulate.patch_forward import replace_forward

BlockOutputs = dict[str, Any]
"""By path of the block, what its last call returned; none of it shares memory with what the model works on."""


@contextmanager
def remember_outputs(model: nn.Module, blocks: Sequence[str]) -> Iterator[BlockOutputs]:
    """Within the context, what the blocks return is copied. Memory: that of their outputs for one batch."""
    outputs: BlockOutputs = {}

    def keep(path: str, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        outputs[path] = _copied(output)

    with ExitStack() as stack:
        for path in blocks:
            stack.enter_context(watch_outputs(model.get_submodule(path), partial(keep, path)))
        yield outputs


@contextmanager
def skipped(model: nn.Module, outputs: Mapping[str, Any], blocks: Sequence[str]) -> Iterator[None]:
    """Within the context these blocks compute nothing and return copies of what is remembered of them."""
    with ExitStack() as stack:
        for path in blocks:
            if path in outputs:
                again = partial(_returned, outputs[path])
                replace_forward(stack, model.get_submodule(path), again)
        yield


def can_skip(model: nn.Module, blocks: Sequence[str], samples: Sequence[TokenizedSample]) -> bool:
    """Whether logits stay what they are, to the last bit, when all blocks but the last are skipped.

    They do not where a block has an effect besides what it returns, such as keys and values that later ones share.
    Tried on the shortest sample.
    """
    shortest = min(samples, key=lambda sample: len(sample.ids))
    (batch,) = batches([shortest], device=next(model.parameters()).device)
    with remember_outputs(model, blocks) as outputs:
        clean = forward(model, batch)
    try:
        with skipped(model, outputs, blocks[:-1]):
            return torch.equal(forward(model, batch), clean)
    except (MeasurementError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        return False  # a later block missed what a skipped one would have left behind


def _returned(output: Any, *_args: Any, **_kwargs: Any) -> Any:
    return _copied(output)


def _copied(value: Any) -> Any:
    # The model may go on in place with what a block returns.
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(_copied, value)) if type(value) in (tuple, list) else value
