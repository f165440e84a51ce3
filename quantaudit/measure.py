"""Runs a corpus through a model once and gathers every site's statistics: model + corpus → Profile."""

from __future__ import annotations

import platform
import re
from collections import Counter
from contextlib import ExitStack
from functools import reduce
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from quantaudit._version import __version__
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.model.capture import capture
from quantaudit.model.drive import Batch, batches, forward, one_logit
from quantaudit.model.experts import Experts, on_all_tokens
from quantaudit.model.load import LoadedModel
from quantaudit.model.routing import Routing
from quantaudit.model.sites import Architecture, discover
from quantaudit.profile import SPLITS, Profile, Split, starved
from quantaudit.progress import Advance, no_advance
from quantaudit.provenance import EnvironmentInfo, Provenance, Unmeasured
from quantaudit.stats.accumulator import Accumulator, PatternCounter
from quantaudit.stats.site import SiteStatistics, merge

PACKAGES = ("torch", "transformers", "compressed-tensors", "llmcompressor", "optimum", "numpy", "scipy")


def measure(
    loaded: LoadedModel,
    corpus: TokenizedCorpus,
    *,
    batch_size: int = 1,
    seed: int = 0,
    experts: Experts = "routed",
    progress: Advance = no_advance,
) -> Profile:
    """One forward pass over the corpus with every site tapped. `progress` is given the tokens of each batch.

    experts: `all` runs experts on all tokens, as `oneshot` calibrates them, and observes both.
    """
    architecture = discover(loaded.model, all_tokens=experts == "all")
    gathered = _Gathered(architecture, all_tokens=experts == "all")

    with ExitStack() as stack:
        if experts == "all" and any(bank.linearized for bank in architecture.banks):
            stack.enter_context(on_all_tokens())
        stack.enter_context(gathered.routing.follow(loaded.model))
        fired = stack.enter_context(capture(loaded.model, architecture.sites, gathered.receive))
        stack.enter_context(one_logit(loaded.model))
        for batch in batches(corpus.samples, batch_size, pad=_pad(loaded), device=loaded.device):
            gathered.batch = batch
            forward(loaded.model, batch)
            progress(batch.tokens)

    statistics = gathered.result()
    provenance = Provenance(
        quantaudit_version=__version__,
        model=loaded.info,
        corpus=corpus.info,
        environment=environment(loaded, batch_size=batch_size, seed=seed),
        samples=corpus.sample_infos(),
        sites=list(architecture.sites),
        unmeasured=[*architecture.unmeasured, *_silent(architecture, fired)],
        token_text=_token_text(loaded, statistics),
    )
    few = starved(Profile(provenance=provenance, statistics=statistics))
    return Profile(
        provenance=provenance.model_copy(update={"unmeasured": [*provenance.unmeasured, *few]}), statistics=statistics
    )


class _Gathered:
    """Statistics by site and split, fed with whole tensors of the batch at hand."""

    batch: Batch

    def __init__(self, architecture: Architecture, *, all_tokens: bool) -> None:
        self._sites = architecture.sites
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
        if bank is None:
            shares = self.batch.shares(x_NC, site)
        else:
            rows = self.routing.of(bank, all_tokens=site in self._over_all)
            shares = self.batch.routed(x_NC, rows, site)
        for sample, x_TC, positions_T in shares:
            key = (site, sample.split)
            if key not in self._accumulators:
                self._accumulators[key] = Accumulator(self._count, sparse=bank is not None)
            tokens_T = sample.ids if positions_T is None else sample.ids[positions_T]
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
        Unmeasured(module=member, reason=_why_silent(member), weights=True)
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


def _why_silent(member: str) -> str:
    images = re.search(r"(^|\.)(vision|visual|multi_modal|image)", member)
    return "no images in the corpus" if images else "never ran in the forward pass"


def _pad(loaded: LoadedModel) -> int:
    tokenizer = loaded.tokenizer
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _token_text(loaded: LoadedModel, statistics: dict[tuple[str, Split], SiteStatistics]) -> dict[int, str]:
    ids = sorted({int(token) for value in statistics.values() for token in value.peaks.token})
    return {token: loaded.tokenizer.decode([token]) for token in ids}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
