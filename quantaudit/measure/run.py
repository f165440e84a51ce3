"""Runs a corpus through a model once and gathers every site's statistics: model + corpus → Profile."""

from __future__ import annotations

import platform
from collections import Counter
from contextlib import ExitStack
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from quantaudit._version import __version__
from quantaudit.common.choices import Experts
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import deal
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.block_by_block import run_by_block
from quantaudit.measure.collector import StatisticsCollector, never_fired, parents, token_text, unreadable
from quantaudit.measure.dealt import Dealt, in_batches_that_fit
from quantaudit.measure.finished_batches import combine_ranks, run_batches
from quantaudit.measure.profile import Profile
from quantaudit.measure.shard import Shard
from quantaudit.measure.undersampled_experts import run_undersampled_on_all_tokens
from quantaudit.model.experts import calibrate_all_experts
from quantaudit.model.forward.arithmetic import arithmetic_now
from quantaudit.model.forward.batches import ONE, BatchLimit, divide, last_logit_only, padded_tokens
from quantaudit.model.forward.capture import calls, capture
from quantaudit.model.forward.half_softmax import half_softmax
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import non_text_sites
from quantaudit.provenance import EnvironmentInfo, Provenance, ShardsInfo

PACKAGES = (
    "torch",
    "transformers",
    "compressed-tensors",
    "llmcompressor",
    "optimum",
    "numpy",
    "scipy",
    "datasets",
    "pillow",
)


def measure(
    loaded: LoadedModel,
    corpus: TokenizedCorpus,
    *,
    batch: BatchLimit = ONE,
    seed: int = 0,
    experts: Experts = "routed",
    shard: Shard | None = None,
    progress: Advance = no_advance,
) -> Profile:
    """One forward pass over the corpus with every site tapped. `progress` is given the tokens of each batch.

    Samples with images run one at a time, whatever `batch` says. Where memory does not hold a batch of several samples,
    the pass begins again with half as many in each. experts: `all` runs experts on all tokens, as `oneshot` calibrates
    them, and observes both; `auto` does so for those that saw too few tokens, in a second pass, unless this is a shard,
    which cannot know. shard: run this part of the batches only; the profile says so. Ranks share the batches, and each
    of them returns the whole profile.
    """
    divided = divide(corpus.samples, batch)
    size = batch.samples if batch.tokens is None else max(map(len, divided))
    if shard is not None:
        shard.check(len(divided))
    architecture = loaded.architecture_on_all_tokens if experts == "all" else loaded.architecture
    own = deal(divided if shard is None else list(shard.deal(divided)), padded_tokens)

    def gathered(dealt: Dealt, advance: Advance) -> tuple[StatisticsCollector, Counter[str], Counter[str]]:
        """Statistics of these batches, and how often tapped modules and those around them ran."""
        non_text = non_text_sites(loaded.model, architecture.sites)
        collector = StatisticsCollector(architecture, non_text=non_text, all_tokens=experts == "all")
        with ExitStack() as stack:
            if experts == "all" and any(expert_list.linearized for expert_list in architecture.expert_lists):
                stack.enter_context(calibrate_all_experts())
            stack.enter_context(collector.routing.follow(loaded.model))
            fired = stack.enter_context(capture(loaded.model, architecture.sites, collector.receive, collector.refuse))
            ran = stack.enter_context(calls(loaded.model, parents(architecture)))
            stack.enter_context(last_logit_only(loaded.model))
            stack.enter_context(half_softmax(loaded.model))
            if loaded.weights is not None:
                run_by_block(loaded, loaded.weights, collector, dealt, advance)
            else:
                stage = f"measuring{dealt.name}"
                run_batches(loaded.model, collector, dealt, fired=fired, ran=ran, progress=advance, stage=stage)
        return collector, fired, ran

    whole = Dealt(divided=own, pad=padding_token(loaded) or 0, device=loaded.device)
    (collector, fired, ran), dealt = in_batches_that_fit(gathered, whole, progress)
    combine_ranks(collector, fired, ran)
    statistics = collector.result()
    profile = Profile.assemble(
        Provenance(
            quantaudit_version=__version__,
            model=loaded.info,
            corpus=corpus.info.model_copy(update={"padded": padded_samples(loaded, corpus)}),
            environment=environment(loaded, batch_size=size, batch_tokens=batch.tokens, seed=seed),
            samples=corpus.sample_infos(),
            sites=list(architecture.sites),
            unmeasured=[
                *architecture.unmeasured,
                *never_fired(architecture, fired, ran, images=corpus.info.images > 0),
                *unreadable(architecture, collector.odd),
            ],
            token_text=token_text(loaded.tokenizer, statistics),
            shards=None if shard is None or shard.count == 1 else ShardsInfo(count=shard.count, held=[shard.index]),
        ),
        statistics,
    )
    if experts != "auto" or profile.provenance.shards is not None:
        return profile
    return run_undersampled_on_all_tokens(loaded, profile, dealt)


def padded_samples(loaded: LoadedModel, corpus: TokenizedCorpus) -> list[str]:
    """Samples whose given tokens begin or end in two padding tokens or more, by id.

    One alone may be meant: models without a padding token of their own pad with the end of a text.
    """
    pad = padding_token(loaded)
    return [s.id for s in corpus.samples if pad is not None and len(s.ids) > 1 and _padded(s.ids, pad)]


def _padded(ids: NDArray[np.int64], pad: int) -> bool:
    return bool((ids[:2] == pad).all() or (ids[-2:] == pad).all())


def environment(loaded: LoadedModel, *, batch_size: int, seed: int, batch_tokens: int | None = None) -> EnvironmentInfo:
    """What the numbers of this run depend on, in addition to the model and the text."""
    config: Any = loaded.model.config
    return EnvironmentInfo(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: metadata.version(name) for name in PACKAGES},
        device=_device_name(loaded.device),
        attention=str(config._attn_implementation),
        arithmetic=arithmetic_now(loaded.model),
        batch_size=batch_size,
        batch_tokens=batch_tokens,
        seed=seed,
        timings={},
    )


def padding_token(loaded: LoadedModel) -> int | None:
    """The token that this model's texts are padded with."""
    tokenizer = loaded.tokenizer
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), None)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
