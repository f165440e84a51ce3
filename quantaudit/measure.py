"""Runs a corpus through a model once and gathers every site's statistics: model + corpus → Profile."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from quantaudit._version import __version__
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.model.capture import capture
from quantaudit.model.drive import Batch, batches, forward, one_logit
from quantaudit.model.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.profile import Profile, Split
from quantaudit.progress import Advance, no_advance
from quantaudit.provenance import EnvironmentInfo, Provenance, Unmeasured
from quantaudit.stats.accumulator import Accumulator, PatternCounter
from quantaudit.stats.site import SiteStatistics

PACKAGES = ("torch", "transformers", "compressed-tensors", "llmcompressor", "optimum", "numpy", "scipy")


def measure(
    loaded: LoadedModel,
    corpus: TokenizedCorpus,
    *,
    batch_size: int = 1,
    seed: int = 0,
    progress: Advance = no_advance,
) -> Profile:
    """One forward pass over the corpus with every site tapped. `progress` is given the tokens of each batch."""
    architecture = discover(loaded.model)
    count = PatternCounter()
    accumulators: defaultdict[tuple[str, Split], Accumulator] = defaultdict(lambda: Accumulator(count))
    batch: Batch

    def receive(site: str, tensor: Tensor) -> None:
        # Only the valid tokens of each row: padding never enters a statistic.
        rows = tensor.reshape(*batch.input_ids.shape, tensor.shape[-1])
        for x_TC, sample in zip(rows, batch.samples, strict=True):
            accumulators[site, sample.split].update(x_TC[: len(sample.ids)], sample=sample.index, tokens_T=sample.ids)

    with capture(loaded.model, architecture.sites, receive) as fired, one_logit(loaded.model):
        for batch in batches(corpus.samples, batch_size, pad=_pad(loaded), device=loaded.device):
            forward(loaded.model, batch)
            progress(batch.tokens)

    statistics = {key: accumulator.result() for key, accumulator in accumulators.items()}
    return Profile(
        provenance=Provenance(
            quantaudit_version=__version__,
            model=loaded.info,
            corpus=corpus.info,
            environment=environment(loaded, batch_size=batch_size, seed=seed),
            samples=corpus.sample_infos(),
            sites=list(architecture.sites),
            unmeasured=[*architecture.unmeasured, *_silent(architecture, fired)],
            token_text=_token_text(loaded, statistics),
        ),
        statistics=statistics,
    )


def environment(loaded: LoadedModel, *, batch_size: int, seed: int) -> EnvironmentInfo:
    """What the numbers of this run depend on beside the model and the text."""
    config: Any = loaded.model.config
    return EnvironmentInfo(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: metadata.version(name) for name in PACKAGES},
        device=_device_name(loaded.device),
        attention=str(config._attn_implementation),
        batch_size=batch_size,
        seed=seed,
        timings={},
    )


def _silent(architecture: Architecture, fired: Counter[str]) -> list[Unmeasured]:
    """Linears and components whose hook never fired."""
    silent = [
        Unmeasured(module=member, reason="never ran in the forward pass", weights=True)
        for group in architecture.groups
        for member in group.members
        if not fired[member]
    ]
    silent += [
        Unmeasured(module=site.name, reason=f"{site.module} never ran in the forward pass")
        for site in architecture.sites
        if site.tap == "output" and not fired[f"{site.module}:output"]
    ]
    return silent


def _pad(loaded: LoadedModel) -> int:
    tokenizer = loaded.tokenizer
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _token_text(loaded: LoadedModel, statistics: dict[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    ids = sorted({int(token) for value in statistics.values() for token in value.peaks.token})
    return {token: loaded.tokenizer.decode([token]) for token in ids}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
