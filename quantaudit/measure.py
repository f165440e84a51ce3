"""Runs a corpus through a model once and gathers every site's statistics: model + corpus → Profile."""

from __future__ import annotations

import platform
import re
from collections import Counter
from contextlib import ExitStack
from functools import reduce
from importlib import metadata
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantaudit._version import __version__
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.model.capture import calls, capture
from quantaudit.model.drive import NO_TOKEN, Batch, Side, batches, forward, one_logit
from quantaudit.model.experts import Experts, on_all_tokens
from quantaudit.model.load import LoadedModel
from quantaudit.model.routing import Routing
from quantaudit.model.sites import Architecture, discover, outside_text
from quantaudit.profile import SPLITS, Profile, Split, starved, unite
from quantaudit.progress import Advance, no_advance
from quantaudit.provenance import EnvironmentInfo, Provenance, Unmeasured
from quantaudit.stats.accumulator import Accumulator, PatternCounter
from quantaudit.stats.site import SiteStatistics, merge

PATCH = "image patch"
"""What a peak in a vision tower has for a token's text."""
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
    batch_size: int = 1,
    padding_side: Side = "right",
    seed: int = 0,
    experts: Experts = "routed",
    progress: Advance = no_advance,
) -> Profile:
    """One forward pass over the corpus with every site tapped. `progress` is given the tokens of each batch.

    Samples with images run one at a time, whatever the batch size. experts: `all` runs experts on all tokens, as
    `oneshot` calibrates them, and observes both.
    """
    architecture = discover(loaded.model, all_tokens=experts == "all")
    aside = outside_text(loaded.model, architecture.sites)
    gathered = _Gathered(architecture, aside=aside, all_tokens=experts == "all")

    with ExitStack() as stack:
        if experts == "all" and any(bank.linearized for bank in architecture.banks):
            stack.enter_context(on_all_tokens())
        stack.enter_context(gathered.routing.follow(loaded.model))
        fired = stack.enter_context(capture(loaded.model, architecture.sites, gathered.receive))
        ran = stack.enter_context(calls(loaded.model, _parents(architecture)))
        stack.enter_context(one_logit(loaded.model))
        for batch in batches(
            corpus.samples, batch_size, pad=_pad(loaded) or 0, device=loaded.device, side=padding_side
        ):
            gathered.batch = batch
            forward(loaded.model, batch)
            progress(batch.tokens)

    statistics = gathered.result()
    provenance = Provenance(
        quantaudit_version=__version__,
        model=loaded.info,
        corpus=corpus.info.model_copy(update={"padded": padded_samples(loaded, corpus)}),
        environment=environment(loaded, batch_size=batch_size, seed=seed),
        samples=corpus.sample_infos(),
        sites=list(architecture.sites),
        unmeasured=[*architecture.unmeasured, *_silent(architecture, fired, ran, images=corpus.info.images > 0)],
        token_text=_token_text(loaded, statistics),
    )
    few = starved(Profile(provenance=provenance, statistics=statistics))
    return Profile(
        provenance=provenance.model_copy(update={"unmeasured": unite(provenance.unmeasured, few)}),
        statistics=statistics,
    )


class _Gathered:
    """Statistics by site and split, fed with whole tensors of the batch at hand."""

    batch: Batch

    def __init__(self, architecture: Architecture, *, aside: frozenset[str], all_tokens: bool) -> None:
        self._sites = architecture.sites
        self._aside = aside
        self._over_all = {site.name for site in architecture.sites if site.kind == "expert_input_all"}
        self._bank = {
            site.name: bank.path
            for bank in architecture.banks
            for site in architecture.sites
            if site.module.startswith(f"{bank.path}.")
        }
        self._count = PatternCounter()
        self._accumulators: dict[tuple[str, Split], Accumulator] = {}
        self.routing = Routing(architecture.banks, all_tokens=all_tokens)

    def receive(self, site: str, tensor: Tensor) -> None:
        """Add a site's tensor: only valid tokens, padding never enters a statistic."""
        x_NC = tensor.reshape(-1, tensor.shape[-1])
        bank = self._bank.get(site)
        patches = bool(self.batch.inputs) and site in self._aside
        if patches:
            shares = self.batch.patches(x_NC)
        elif bank is None:
            shares = self.batch.shares(x_NC, site)
        else:
            rows = self.routing.of(bank, all_tokens=site in self._over_all)
            shares = self.batch.routed(x_NC, rows, site)
        for sample, x_TC, positions_T in shares:
            key = (site, sample.split)
            if key not in self._accumulators:
                self._accumulators[key] = Accumulator(self._count, sparse=bank is not None)
            tokens_T = sample.ids if positions_T is None else sample.ids[positions_T]
            if patches:
                tokens_T = np.full(len(x_TC), NO_TOKEN, np.int64)
            self._accumulators[key].update(x_TC, sample=sample.index, tokens_T=tokens_T, positions_T=positions_T)

    def result(self) -> dict[tuple[str, Split], SiteStatistics]:
        """What was gathered; a site with parts is their merge."""
        found = {key: accumulator.result() for key, accumulator in self._accumulators.items()}
        for site in self._sites:
            for split in SPLITS:
                parts = [found[part, split] for part in site.parts if (part, split) in found]
                if parts:
                    found[site.name, split] = reduce(merge, parts)
        return found


def padded_samples(loaded: LoadedModel, corpus: TokenizedCorpus) -> list[str]:
    """Samples whose given tokens begin or end in two padding tokens or more, by id.

    One alone may be meant: models without a padding token of their own pad with the end of a text.
    """
    pad = _pad(loaded)
    return [s.id for s in corpus.samples if pad is not None and len(s.ids) > 1 and _padded(s.ids, pad)]


def _padded(ids: NDArray[np.int64], pad: int) -> bool:
    return bool((ids[:2] == pad).all() or (ids[-2:] == pad).all())


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


def _silent(architecture: Architecture, fired: Counter[str], ran: Counter[str], *, images: bool) -> list[Unmeasured]:
    """Linears and components whose hook never fired, but for those of experts that were merely not chosen."""
    idle = {expert for bank in architecture.banks if ran[_parent(bank.path)] for expert in bank.experts}
    silent = [
        Unmeasured(module=member, reason=_why_silent(member, ran, images=images), weights=True)
        for group in architecture.groups
        for member in group.members
        if not fired[member] and (ran[_parent(member)] or _parent(member) not in idle)
    ]
    silent += [
        Unmeasured(module=site.name, reason=f"{site.module} never ran in the forward pass")
        for site in architecture.sites
        if site.tap == "output" and not fired[f"{site.module}:output"]
    ]
    return silent


def _why_silent(member: str, ran: Counter[str], *, images: bool) -> str:
    if not images and re.search(r"(^|\.)(vision|visual|multi_modal|image)", member):
        return "no images in the corpus"
    if ran[_parent(member)]:
        return "never ran although the module around it did, which must use its weights by itself or not at all"
    return "never ran in the forward pass"


def _parents(architecture: Architecture) -> set[str]:
    """Modules around Linears, and around lists of experts."""
    inside = {_parent(member) for group in architecture.groups for member in group.members}
    return inside | {_parent(bank.path) for bank in architecture.banks}


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _pad(loaded: LoadedModel) -> int | None:
    """The token that this model's texts are padded with."""
    tokenizer = loaded.tokenizer
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), None)


def _token_text(loaded: LoadedModel, statistics: dict[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    ids = sorted({int(token) for value in statistics.values() for token in value.peaks.token})
    return {token: PATCH if token == NO_TOKEN else loaded.tokenizer.decode([token]) for token in ids}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
