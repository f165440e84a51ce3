"""A model that was loaded without its blocks, made to read each of them when it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from quantaudit.model.blockwise.block_weights import BlockWeights, without_values
from quantaudit.model.blockwise.checkpoint_blocks import CheckpointBlocks
from quantaudit.model.blockwise.memory import give_back
from quantaudit.model.experts import ExpertClasses, Linearization, linearize
from quantaudit.model.loading.weights import OddWeights, odd_weights
from quantaudit.model.weight_sketch import sketches
from quantaudit.provenance import WeightSketch


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadedBlocks:
    """The blocks of a model that reads them as they are called, and what was learned of them all."""

    weights: BlockWeights
    linearization: Linearization
    odd: OddWeights
    sketches: dict[str, WeightSketch]


def offload_blocks(model: Any, blocks: CheckpointBlocks, device: torch.device) -> OffloadedBlocks:
    """Read every block once, to look at its weights and to split its experts; then leave them where they are stored.

    model: everything else of it is in memory. Its modules become those of the whole model, in place. Raises ModelError.
    """
    classes, parts, odd = ExpertClasses(), [], [odd_weights(model)]
    kept: dict[str, WeightSketch] = {}

    def read(index: int) -> tuple[nn.Module, OddWeights, Linearization]:
        block = blocks.read(index, device)
        stored = odd_weights(block)
        part = linearize(block, config=model.config, classes=classes)
        return block, stored, part

    for index, path in enumerate(blocks.blocks):
        block, stored, part = read(index)
        kept |= sketches(block, f"{path}.")
        without_values(block)
        for inner in part.split:
            model.set_submodule(f"{path}.{inner}", block.get_submodule(inner))
        if part.split or blocks.converts:
            give_back()  # what experts were made of came in pieces too small to go by themselves
        parts.append(_under(path, part))
        odd.append(OddWeights([f"{path}.{n}" for n in stored.codes], [f"{path}.{n}" for n in stored.constant]))
    parts.append(linearize(model, classes=classes, skip=blocks.blocks))
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    return OffloadedBlocks(
        weights=BlockWeights(
            model,
            blocks.blocks,
            lambda index: read(index)[0],
            converted=blocks.converts or any(part.split for part in parts),
        ),
        linearization=Linearization(
            split=[path for part in parts for path in part.split],
            left=sum(part.left for part in parts),
            wrong=sorted((path for part in parts for path in part.wrong), key=lambda path: order[path]),
        ),
        odd=OddWeights(
            _in_order([name for part in odd for name in part.codes], order),
            _in_order([name for part in odd for name in part.constant], order),
        ),
        sketches=kept,
    )


def _under(path: str, part: Linearization) -> Linearization:
    return Linearization(
        split=[f"{path}.{inner}" for inner in part.split],
        left=part.left,
        wrong=[f"{path}.{inner}" for inner in part.wrong],
    )


def _in_order(names: list[str], order: dict[str, int]) -> list[str]:
    """Names of matrices in the order of their modules; those of stacked experts come after their module, numbered."""
    return sorted(names, key=lambda name: order.get(name, order.get(name.rpartition(".")[0], 0)))
