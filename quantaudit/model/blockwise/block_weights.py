"""Weights of one decoder block at a time: brought when the block is called, dropped when another one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from quantaudit.model.blockwise.memory import give_back
from quantaudit.model.experts import release
from quantaudit.model.forward.hooks import Arguments, Keywords, change_for_good

ReadBlock = Callable[[int], nn.Module]
"""A block of a model by its index, with its weights on the device of the model."""


class BlockWeights:
    """The weights of a model's decoder blocks, of which one is in memory.

    Whoever calls the model needs to know nothing of it: a hook on each block brings its weights. Tensors that are not
    stored with a checkpoint (rotary tables) stay in memory, and so does all that is outside the blocks.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[str], read: ReadBlock, *, converted: bool) -> None:
        self.blocks = tuple(blocks)
        self.converted = converted
        """Whether weights are stored in another form than they are used in."""
        self.budget: int | None = None
        """Bytes that the process may use in all; None for no limit."""
        self.side_by_side = False
        """Whether batches were seen to run side by side as they run alone."""
        self._model = model
        self._modules = [model.get_submodule(path) for path in blocks]
        self._read = read
        self._here: int | None = None
        self._changed = False
        self._absent: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
        self.bytes = [stored_bytes(module) for module in self._modules]
        """Of the weights of each block."""
        self.loads = 0
        """How often a block was read."""
        for index, module in enumerate(self._modules):
            change_for_good(module, inputs=self._bringing(index))

    @property
    def largest(self) -> int:
        """Bytes of the block with the most."""
        return max(self.bytes)

    def bring(self, index: int) -> None:
        """Have the weights of this block in memory, as they are stored, and of no other."""
        if self._here == index and not self._changed:
            return
        self.drop()
        block = self._read(index)
        module = self._modules[index]
        for name, tensor in stored_tensors_of(block):
            owner, _, leaf = name.rpartition(".")
            into = _slots(module.get_submodule(owner), leaf)
            absent = into[leaf]
            assert absent is not None
            self._absent.append((into, leaf, absent))
            into[leaf] = tensor.requires_grad_(absent.requires_grad)
        release(block)
        self._here = index
        self.loads += 1

    def change(self, path: str, weight: Tensor) -> None:
        """Have a module of the block in memory use another weight, in place of the stored one, until blocks change."""
        self._model.get_submodule(path)._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
        self._changed = True

    def index_of(self, path: str) -> int | None:
        """In which block a module is; None outside of all."""
        return next((index for index, block in enumerate(self.blocks) if f"{path}.".startswith(f"{block}.")), None)

    def drop(self) -> None:
        """Have the weights of no block in memory."""
        for into, leaf, absent in self._absent:
            into[leaf] = absent
        self._absent.clear()
        if self._here is not None and self.converted:
            give_back()
        self._here, self._changed = None, False

    def _bringing(self, index: int) -> Callable[[nn.Module, Arguments, Keywords], None]:
        def needed(_module: nn.Module, _args: Arguments, _kwargs: Keywords) -> None:
            if self._here != index:
                self.bring(index)

        return needed


def stored_tensors_of(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a block by name: what a checkpoint holds of it."""
    for name, module in block.named_modules():
        prefix = f"{name}." if name else ""
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + leaf, parameter
        for leaf, buffer in module._buffers.items():
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                yield prefix + leaf, buffer


def without_values(block: nn.Module) -> None:
    """Leave shapes and dtypes of what a checkpoint holds of a block, and drop the values."""
    for name, tensor in stored_tensors_of(block):
        owner, _, leaf = name.rpartition(".")
        empty = torch.empty_like(tensor, device="meta")
        made = nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        _slots(block.get_submodule(owner), leaf)[leaf] = made


def _slots(module: nn.Module, leaf: str) -> dict[str, Tensor | None]:
    slots: dict[str, Tensor | None] = module._parameters if leaf in module._parameters else module._buffers  # type: ignore[assignment]
    return slots


def stored_bytes(block: nn.Module) -> int:
    """Bytes of what a checkpoint holds of a module, each tensor once."""
    return sum({id(tensor): tensor.nbytes for _, tensor in stored_tensors_of(block)}.values())
