"""What a report takes in memory and on disk, counted from the modules of a model and the lengths of its samples.

Shapes are enough: a model on the meta device, or one whose blocks are on disk, gives the figures of the whole model.
`plan` and `report` say these figures before anything runs, and `benchmarks/plan.py` sets them against what runs take.
FOOTPRINT and EXPERTS are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.blockwise.block_weights import stored_bytes
from quantaudit.model.blockwise.budget import (
    PROGRAM,
    Needs,
    activation_bytes,
    block_bytes,
    copies_bytes,
    logits_bytes,
)
from quantaudit.model.blockwise.memory import size_text
from quantaudit.model.experts import is_linearized
from quantaudit.model.forward.batches import ONE, BatchLimit
from quantaudit.model.sites import Architecture
from quantaudit.model.structure import hidden_size, linears
from quantaudit.simulate.logits.score_plans import KEPT_BYTES
from quantaudit.simulate.logits.side_by_side import AT_ONCE
from quantaudit.simulate.replay.backward_pass import GRAPH_BYTES, graph_bytes
from quantaudit.simulate.sensitivity.draws import draws_for

FOOTPRINT = 830 << 20
"""Bytes of the program with its libraries while it reports a model that takes next to nothing."""
EXPERTS = 150 << 20
"""The same of what splits experts into Linears, in addition."""
EACH_DRAW = 2
"""Hidden states that a draw of labels leaves of every block: gradients where its two branches join."""
HISTOGRAM = 1 << 19
"""Bytes of a histogram over all 16-bit patterns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBytes:
    """Bytes of a model's weights. blocks: of each decoder block; outside: of everything else; quantized: of the Linears
    in blocks, which a simulation holds once more; head: of what gives logits; widest: of the largest Linear; converted:
    whether they are stored in another form than used; dense: sites with a histogram over all patterns; wide: whether
    their 16-bit products are computed in float32.
    """

    blocks: tuple[int, ...]
    outside: int
    quantized: int
    head: int
    widest: int
    converted: bool
    split: bool
    dense: int
    wide: bool

    @classmethod
    def of(cls, model: Any, architecture: Architecture, *, converted: bool, wide: bool) -> ModelBytes:
        """Those of a model, wherever its weights are."""
        modules = [model.get_submodule(path) for path in architecture.blocks]
        blocks = tuple(stored_bytes(module) for module in modules)
        inside: list[Any] = [linear.weight for module in modules for linear in linears(module).values()]
        sizes = [int(weight.nbytes) for weight in inside]
        head = stored_bytes(output) if (output := model.get_output_embeddings()) is not None else 0
        split = any(map(is_linearized, model.modules()))
        return cls(
            blocks=blocks,
            outside=stored_bytes(model) - sum(blocks),
            quantized=sum(sizes),
            head=head,
            widest=max([head, *sizes]),
            converted=converted or split,
            split=split,
            dense=sum(site.kind != "expert_input" for site in architecture.sites),
            wide=wide,
        )

    @property
    def total(self) -> int:
        """Of all weights."""
        return self.outside + sum(self.blocks)

    @property
    def program(self) -> int:
        """Bytes of the program without any weights."""
        return FOOTPRINT + EXPERTS * self.split

    @property
    def passing(self) -> int:
        """Bytes of a float32 copy that is made for one product and not kept."""
        return 2 * self.widest if self.wide else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens that one process runs. rows, longest: of the largest batch that is measured, tokens: of all that are;
    evaluated, longest_evaluated: of the samples that predictions are taken on, which are cut shorter; 0 for none.
    draws: of labels, for each of these.
    """

    rows: int
    longest: int
    tokens: int
    evaluated: int = 0
    longest_evaluated: int = 0
    draws: int = 0

    @classmethod
    def of(
        cls,
        samples: Sequence[TokenizedSample],
        evaluated: Sequence[TokenizedSample] = (),
        *,
        batch: BatchLimit = ONE,
        ranks: int = 1,
    ) -> Lengths:
        """Of a rank, where whole samples are dealt to several."""
        lengths, cut = [len(sample.ids) for sample in samples], [len(sample.ids) for sample in evaluated]
        longest = max(lengths, default=0)
        # Batches of shorter samples may have more tokens than that of the longest, up to all that are allowed.
        rows = batch.samples if batch.tokens is None else -(-batch.tokens // max(longest, 1))
        return cls(
            rows=min(rows, len(lengths)),
            longest=longest,
            tokens=max(sum(lengths) // ranks, longest),
            evaluated=max(sum(cut) // ranks, max(cut, default=0)),
            longest_evaluated=max(cut, default=0),
            draws=draws_for(sum(cut)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one process takes. peak: bytes of memory; least: the smallest budget that holds it; disk: bytes of what
    waits in the temporary folder.
    """

    peak: int
    least: int
    disk: int = 0

    def __str__(self) -> str:
        """As it is said before a run."""
        disk = f", {size_text(self.disk)} in the temporary folder" if self.disk else ""
        return f"about {size_text(self.peak)} of memory{disk}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """A stage block by block. waiting: bytes of what lies between two blocks, in memory or on disk."""

    needs: Needs
    waiting: int


def whole(model: Any, sizes: ModelBytes, lengths: Lengths, *, eager: bool, copies: int) -> Demand:
    """With all weights in memory. eager: how attention is measured; copies: of the weights that have to fit."""
    held = sizes.program + sizes.total + (2 * max(sizes.blocks) if sizes.converted else 0)
    held += sizes.passing + (copies_bytes(sizes.quantized + sizes.head) if sizes.wide else 0)
    stages = [activation_bytes(model.config, lengths.rows, lengths.longest, eager=eager) + HISTOGRAM * sizes.dense]
    if lengths.evaluated:
        logits = 2 * logits_bytes(model, lengths.longest_evaluated)
        kept = min(KEPT_BYTES, logits_bytes(model, lengths.evaluated) + _hidden_bytes(model, lengths.evaluated, sizes))
        stages += [
            min(GRAPH_BYTES, graph_bytes(model, [""], lengths.longest_evaluated))
            + logits
            + _recorded_bytes(model, lengths, sizes),
            sizes.quantized + kept + logits,
        ]
    peak = held + max(stages)
    return Demand(peak=peak, least=max(peak, sizes.program + copies * sizes.total))


def by_block(
    model: Any, blocks: Sequence[str], sizes: ModelBytes, lengths: Lengths, *, eager: bool, plans: int, budget: int
) -> Demand:
    """With one decoder block in memory. plans: schemes and recipes that run side by side.

    What waits between two blocks takes what the budget leaves; one below `least` leaves nothing, and is exceeded.
    """
    peak = least = disk = 0
    for stage in _stages(model, blocks, sizes, lengths, eager=eager, plans=plans):
        held = stage.needs.least - PROGRAM  # which FOOTPRINT has
        room = max(0, budget - held)
        peak = max(peak, held + min(stage.waiting, room))
        least = max(least, held)
        disk = max(disk, stage.waiting - room)
    return Demand(peak=peak, least=least, disk=disk)


def _stages(
    model: Any, blocks: Sequence[str], sizes: ModelBytes, lengths: Lengths, *, eager: bool, plans: int
) -> list[_Stage]:
    present = sizes.program + sizes.outside + sizes.passing
    block = block_bytes(max(sizes.blocks), converted=sizes.converted, wide=sizes.wide)

    def stage(rows: int, longest: int, waiting: int, *, logits: int = 0, graph: int = 0, eager: bool = False) -> _Stage:
        batch = activation_bytes(model.config, rows, longest, eager=eager) + graph
        return _Stage(needs=Needs(present=present, block=block, batch=batch, logits=logits), waiting=waiting)

    one = hidden_size(model) * next(model.parameters()).element_size()
    masks = lengths.tokens * lengths.longest * next(model.parameters()).element_size() if eager else 0
    stages = [stage(lengths.rows, lengths.longest, lengths.tokens * one + masks, eager=eager)]
    if lengths.evaluated:
        longest, logits = lengths.longest_evaluated, 2 * logits_bytes(model, lengths.longest_evaluated)
        graph = max(graph_bytes(model, [path], longest) for path in _kinds(blocks, sizes)) + 2 * lengths.evaluated * one
        recorded = _recorded_bytes(model, lengths, sizes)
        stages += [
            stage(1, longest, recorded, logits=logits, graph=graph),
            stage(1, longest, (1 + min(plans, AT_ONCE)) * lengths.evaluated * one, logits=logits),
        ]
    return stages


def _kinds(blocks: Sequence[str], sizes: ModelBytes) -> list[str]:
    """One block of each size."""
    return list(dict(zip(sizes.blocks, blocks, strict=True)).values())


def _recorded_bytes(model: Any, lengths: Lengths, sizes: ModelBytes) -> int:
    """Of what replays need: inputs of all blocks, and gradients in them."""
    return (1 + EACH_DRAW * lengths.draws) * _hidden_bytes(model, lengths.evaluated, sizes)


def _hidden_bytes(model: Any, tokens: int, sizes: ModelBytes) -> int:
    """Of the inputs of all blocks."""
    return int(tokens * hidden_size(model) * next(model.parameters()).element_size() * len(sizes.blocks))
