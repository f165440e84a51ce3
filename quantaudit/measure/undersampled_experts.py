"""Runs experts that few tokens are routed to on all tokens, as `oneshot` calibrates them: their range is then known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from quantaudit.common.progress import Advance, no_advance
from quantaudit.measure.block_by_block import run_by_block
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.measure.dealt import Dealt, in_batches_that_fit
from quantaudit.measure.finished_batches import combine_ranks, run_batches
from quantaudit.measure.profile import Profile, tokens, undersampled_experts, undersampled_inputs
from quantaudit.model.forward.batches import last_logit_only
from quantaudit.model.forward.capture import capture
from quantaudit.model.forward.hooks import watch_inputs
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import ALL, Architecture, non_text_sites
from quantaudit.provenance import SiteInfo, Split
from quantaudit.stats.site import SiteStatistics


def undersampled_lists(profile: Profile, architecture: Architecture) -> dict[str, list[str]]:
    """Undersampled experts by the path of their list: those that saw too few tokens, but some.

    One that no token reaches stays unmeasured. Only of lists whose experts llm-compressor can run on all tokens.
    """
    short = {site.module: tokens(profile, site.name) for site in undersampled_inputs(profile)}
    return {
        expert_list.path: experts
        for expert_list in architecture.expert_lists
        if expert_list.linearized
        and (experts := [path for path in expert_list.experts if any(_inside(m, path) and n for m, n in short.items())])
    }


def run_undersampled_on_all_tokens(loaded: LoadedModel, profile: Profile, dealt: Dealt) -> Profile:
    """The profile, with what undersampled experts make of all tokens in sites of their own; itself without any.

    One more pass over the corpus, in which these experts alone do more work than they are routed. What the model
    computes stays what it is. dealt: the batches of the first pass, on each rank its own.
    """
    if not undersampled_inputs(profile):
        return profile
    architecture = loaded.architecture_on_all_tokens
    experts = undersampled_lists(profile, architecture)
    paths = [path for of_list in experts.values() for path in of_list]
    inputs = [
        site
        for site in architecture.sites
        if site.kind == "expert_input_all" and not site.parts and any(_inside(site.module, path) for path in paths)
    ]
    if not inputs:
        return profile

    def gathered(dealt: Dealt, _progress: Advance) -> tuple[StatisticsCollector, Counter[str]]:
        """Statistics of these batches, and how often tapped modules ran."""
        non_text = non_text_sites(loaded.model, architecture.sites)
        collector = StatisticsCollector(architecture, non_text=non_text, all_tokens=True)
        extra = _ExtraRuns(loaded.model, experts, collector)
        with ExitStack() as stack:
            stack.enter_context(collector.routing.follow(loaded.model))
            fired = stack.enter_context(capture(loaded.model, inputs, extra.receive, collector.refuse))
            stack.enter_context(last_logit_only(loaded.model))
            extra.attach(stack)
            if loaded.weights is not None:
                run_by_block(loaded, loaded.weights, collector, dealt)
            else:
                stage = f"experts on all tokens{dealt.name}"
                run_batches(loaded.model, collector, dealt, fired=fired, ran=Counter(), stage=stage)
        return collector, fired

    (collector, fired), _ = in_batches_that_fit(gathered, dealt, no_advance)
    combine_ranks(collector, fired, Counter())
    names = {site.name for site in inputs}
    over_all = {key: value for key, value in collector.result().items() if key[0] in names}
    reached = {name for name, _ in over_all}
    return _joined(profile, [site for site in inputs if site.name in reached], over_all)


class _ExtraRuns:
    """Calls experts on everything that their container is given, before it sends tokens to them."""

    def __init__(self, model: nn.Module, experts: Mapping[str, list[str]], collector: StatisticsCollector) -> None:
        self._model, self._experts, self._collector = model, experts, collector
        self._running = False

    def receive(self, site: str, tensor: Tensor) -> None:
        """Take an input of these runs, and none of the model's own."""
        if self._running:
            self._collector.receive(site, tensor)

    def attach(self, stack: ExitStack) -> None:
        """Hook the containers for as long as the stack is open."""
        for container, paths in self._experts.items():
            modules = [self._model.get_submodule(path) for path in paths]

            def hook(
                _container: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], experts: list[nn.Module] = modules
            ) -> None:
                given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
                if any(not value.is_floating_point() and value.ndim == 2 for value in given):
                    self._run(experts, given[0].reshape(-1, given[0].shape[-1]))

            stack.enter_context(watch_inputs(self._model.get_submodule(container), hook))

    def _run(self, experts: list[nn.Module], x_NC: Tensor) -> None:
        self._running = True
        try:
            for expert in experts:
                expert(x_NC)
        finally:
            self._running = False


def _joined(
    profile: Profile, over_all: list[SiteInfo], over_all_statistics: Mapping[tuple[str, Split], SiteStatistics]
) -> Profile:
    routed = {site.name.removesuffix(ALL): site for site in over_all}
    sites = []
    for site in profile.sites:
        other = routed.get(site.name)
        sites += [site] if other is None else [site.model_copy(update={"all_tokens": other.name}), other]
    few = {row.module for row in undersampled_experts(profile)}
    never_fired = [row for row in profile.provenance.unmeasured if row.module not in few]
    provenance = profile.provenance.model_copy(update={"sites": sites, "unmeasured": never_fired})
    return Profile.assemble(provenance, {**profile.statistics, **over_all_statistics})


def _inside(module: str, path: str) -> bool:
    return module.startswith(f"{path}.")
