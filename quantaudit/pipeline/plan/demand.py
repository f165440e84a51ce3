"""The memory of a report under its settings: of a model that is loaded, or of its skeleton."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from torch import nn

from quantaudit.common.ranks.team import team
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.model.sites import Architecture
from quantaudit.pipeline.passes import COPIES, measured_eagerly
from quantaudit.pipeline.prepare import AuditInputs, batch_limit
from quantaudit.settings import Settings
from quantaudit.simulate import memory
from quantaudit.simulate.cost import MIXTURES, Work, single_passes
from quantaudit.simulate.evaluation import select
from quantaudit.simulate.memory import Demand, Lengths, ModelBytes


class Demands:
    """What reports of one model and text take in memory, by the way in which the model runs."""

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        samples: Sequence[TokenizedSample],
        settings: Settings,
        work: Work,
        *,
        converted: bool,
        wide: bool,
        ranks: int = 1,
    ) -> None:
        self._model, self._blocks = model, architecture.blocks
        self.sizes = ModelBytes.of(model, architecture, converted=converted, wide=wide)
        evaluated = select(samples, settings.simulate.evaluation_tokens) if work.evaluated else []
        self.lengths = Lengths.of(samples, evaluated, batch=batch_limit(settings), ranks=ranks)
        self._eager = measured_eagerly(settings, self.lengths.longest)
        self._plans = max(work.schemes + MIXTURES + work.recipes, single_passes(work))
        self._copies = COPIES if work.evaluated else 1

    @property
    def whole(self) -> Demand:
        """With all weights in memory."""
        return memory.whole(self._model, self.sizes, self.lengths, eager=self._eager, copies=self._copies)

    def fit_whole(self, budget: int) -> bool:
        """Whether a run with all weights in memory keeps to a budget, or takes no more than one block by block."""
        return self.whole.peak <= max(budget, self.by_block(budget).peak)

    def by_block(self, budget: int) -> Demand:
        """With one decoder block in memory, within a budget."""
        return memory.by_block(
            self._model,
            self._blocks,
            self.sizes,
            self.lengths,
            eager=self._eager,
            plans=self._plans,
            budget=budget,
        )


def demands_of(inputs: AuditInputs, work: Work) -> Demands:
    """Of a job whose model is loaded, on each rank."""
    loaded = inputs.loaded
    return Demands(
        loaded.model,
        loaded.architecture,
        inputs.corpus.samples,
        inputs.settings,
        work,
        converted=loaded.weights is not None and loaded.weights.converted,
        wide=inputs.arithmetic == "float32",
        ranks=team().size,
    )


def demand_of(inputs: AuditInputs, work: Work) -> Demand:
    """The same as it runs, whole or block by block."""
    weights, demands = inputs.loaded.weights, demands_of(inputs, work)
    return demands.whole if weights is None else demands.by_block(weights.budget or sys.maxsize)
