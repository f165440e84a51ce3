"""The passes of a job over a model that is loaded: measuring, and simulating what was measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

import torch

from quantaudit.common.choices import find_single
from quantaudit.common.progress import Advance, Stages, no_advance, silent_stages
from quantaudit.common.ranks.forked import can_fork, run_forked
from quantaudit.common.ranks.team import team
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.paper.reference import TokenRatios
from quantaudit.measure.paper.token_ratios import token_ratios
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.measure.shard import Shard
from quantaudit.model.blockwise.memory import available_bytes
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.forward.causal import ahead_doubts
from quantaudit.model.forward.float32_products import make_copies
from quantaudit.pipeline.prepare import AuditInputs, check_profile
from quantaudit.settings import Settings
from quantaudit.simulate.cost import MEASURING, RATIOS
from quantaudit.simulate.experiment import GroupOptions
from quantaudit.simulate.records import Simulation, UnjudgedScheme
from quantaudit.simulate.run import simulate

T = TypeVar("T")

EAGER_TOKENS = 4096
"""Longest sample that is measured with eager attention under `auto`; above, as the model was loaded."""
COPIES = 2
"""Of the weights while a model is simulated: those that are quantized are held next to the others."""

SMALL = 1 << 31
"""Bytes of weights up to which samples are shared by processes: larger products keep all threads busy."""
MOST_FORKS = 8
"""Processes that share samples, at most."""
FORK_BYTES, FORK_WEIGHTS = 1 << 30, 4
"""Memory that each of them takes: for itself, and for each byte of the weights, which it quantizes and widens."""


def measure_samples(
    inputs: AuditInputs, corpus: TokenizedCorpus, advance: Advance = no_advance, *, shard: Shard | None = None
) -> Profile:
    """One pass over samples, or over a shard of them, with every site tapped.

    Attention runs eagerly, as llm-compressor calibrates it, unless another is asked for or, under `auto`, a sample of
    the whole corpus is longer than EAGER_TOKENS.
    """
    longest = max(len(sample.ids) for sample in inputs.corpus.samples)
    eager = measured_eagerly(inputs.settings, longest)
    with inputs.computed(), eager_attention(inputs.loaded.model) if eager else nullcontext():
        return measure(
            inputs.loaded,
            corpus,
            batch=inputs.batch,
            seed=inputs.settings.corpus.seed,
            experts=inputs.settings.measure.experts,
            shard=shard,
            progress=advance,
        )


def measured_eagerly(settings: Settings, longest: int) -> bool:
    """Whether attention runs eagerly while it is measured. longest: tokens of the longest sample."""
    # Eager attention keeps a matrix of tokens by tokens for every head.
    chosen = settings.measure.attention
    return chosen == "eager" or (chosen == "auto" and longest <= EAGER_TOKENS)


def ratios_of_inputs(inputs: AuditInputs, stages: Stages = silent_stages) -> dict[str, TokenRatios]:
    """One more pass over the corpus, for what no profile holds."""
    longest = max(len(sample.ids) for sample in inputs.corpus.samples)
    eager = measured_eagerly(inputs.settings, longest)
    advance = stages(RATIOS, inputs.corpus.info.tokens, "tokens")
    with inputs.computed(), eager_attention(inputs.loaded.model) if eager else nullcontext():
        return token_ratios(inputs.loaded, inputs.corpus, batch=inputs.batch, progress=advance)


def measure_inputs(inputs: AuditInputs, stages: Stages = silent_stages, shard: Shard | None = None) -> Profile:
    """One pass over the corpus, or a shard of it, with every site tapped: `measure_samples` says how."""
    inputs = _with_doubts(inputs)

    def work(shown: Stages) -> Profile:
        parts = (shard.count if shard else 1) * team().size
        advance = shown(MEASURING, inputs.corpus.info.tokens // parts, "tokens")
        return measure_samples(inputs, inputs.corpus, advance, shard=shard)

    return shared(inputs, work, stages)


def _with_doubts(inputs: AuditInputs) -> AuditInputs:
    """The inputs, with what a short run says against the model: kept by the profile, and so by every card of it."""
    loaded = inputs.loaded
    with inputs.computed():
        ahead = ahead_doubts(loaded.model, inputs.corpus.samples, loaded.device)
    info = loaded.info.model_copy(update={"doubts": [*loaded.info.doubts, *ahead]})
    return replace(inputs, loaded=replace(loaded, info=info))


def simulate_inputs(inputs: AuditInputs, profile: Profile, stages: Stages = silent_stages) -> Simulation:
    """Predict what schemes and recipes do. Raises FormatError when the profile is of another model or corpus."""
    check_profile(inputs, profile)
    options = inputs.settings.simulate
    chosen = inputs.chosen

    def work(shown: Stages) -> Simulation:
        with inputs.computed():
            return simulate(
                inputs.loaded,
                profile,
                inputs.corpus.samples,
                chosen.schemes,
                evaluation_tokens=options.evaluation_tokens,
                groups=GroupOptions(
                    score=options.score, single=find_single(options.single_groups), price_alone=chosen.price_alone
                ),
                recipes=inputs.recipes,
                stages=shown,
            )

    simulation = shared(inputs, work, stages)
    not_judged = [
        UnjudgedScheme(name=scheme.name, title=scheme.title, reason=reason) for scheme, reason in chosen.left_out
    ]
    return simulation.model_copy(update={"not_judged": not_judged})


def fork_count(inputs: AuditInputs) -> int:
    """How many processes share the samples, forks of this one: 1 where they may not, or are not worth their memory."""
    loaded = inputs.loaded
    if loaded.weights is not None or loaded.device.type != "cpu" or not can_fork():
        return 1
    weights = sum(parameter.nbytes for parameter in loaded.model.parameters())
    if weights > SMALL:
        return 1
    room = available_bytes() // (FORK_BYTES + FORK_WEIGHTS * weights)
    return max(1, min(torch.get_num_threads(), MOST_FORKS, len(inputs.corpus.samples), room))


def shared(inputs: AuditInputs, work: Callable[[Stages], T], stages: Stages = silent_stages) -> T:
    """What `work` gives, its samples shared by as many processes as they are worth."""
    count = fork_count(inputs)
    if count == 1:
        return work(stages)
    with inputs.computed():
        make_copies(inputs.loaded.model)
        return run_forked(work, count, stages)
