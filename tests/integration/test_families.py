"""Every family, from a saved checkpoint to a profile: nothing is passed by in silence, and a planted spike is found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from quantaudit.card.build import build_card
from quantaudit.card.schema import Card
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.measure.profile import Profile
from quantaudit.measure.run import measure
from quantaudit.model.experts import linearize
from quantaudit.model.forward.batches import BatchLimit
from quantaudit.model.forward.capture import first_tensor, router_logits
from quantaudit.model.loading.load import LoadedModel
from quantaudit.model.sites import Architecture, discover
from quantaudit.policy import load_policy
from quantaudit.provenance import SiteInfo
from quantaudit.quant.schemes import SCHEMES
from quantaudit.simulate.run import simulate
from tests.builders import load, loaded_from, random_corpus, save_checkpoint
from tests.families import FAMILIES, family_config, family_model

SPIKE, TOKEN, CHANNEL = 24576.0, 7, 2
"""Exact in bfloat16, and far above what these models make themselves."""
CHOSEN = {"llama4": 1}
"""Experts a token is sent to, where they are not two."""
OWN_OUTPUT = {"attention_output", "linear_attention_output", "mixer_output"}


@pytest.fixture(scope="module", params=[*FAMILIES, "ling"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def loaded(family: str, tmp_path_factory: pytest.TempPathFactory, tiny_loaded: LoadedModel) -> LoadedModel:
    if family == "ling":  # its code would come with the checkpoint
        return loaded_from(family_model(family), tiny_loaded)
    return load(save_checkpoint(tmp_path_factory.mktemp("family"), family_model(family)))


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([40, 33, 33, 29, 24, 20, 11, 3])


@pytest.fixture(scope="module")
def architecture(loaded: LoadedModel) -> Architecture:
    return discover(loaded.model)


@pytest.fixture(scope="module")
def profile(loaded: LoadedModel, corpus: TokenizedCorpus) -> Profile:
    return measure(loaded, corpus, batch=BatchLimit(3))


def linears(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


# Nothing in silence --------------------------------------------------------------------------------------------------


def test_every_linear_is_in_one_group_and_none_is_missing(loaded: LoadedModel, architecture: Architecture) -> None:
    members = Counter(member for group in architecture.groups for member in group.members)
    assert members == Counter(linears(loaded.model))
    assert not [row for row in architecture.unmeasured if row.weights]


def test_every_component_is_a_site_or_listed(architecture: Architecture) -> None:
    listed = {row.module for row in architecture.unmeasured}
    kinds = Counter(site.kind for site in architecture.sites)
    assert kinds["embedding"] == kinds["final_norm"] == 1
    assert kinds["residual"] == 2
    for layer in range(2):
        own = [site.kind for site in architecture.sites if site.layer == layer]
        assert len(OWN_OUTPUT & set(own)) == 1
        assert "mlp_output" in own or f"layers.{layer}.mlp.output" in listed
        assert "gate" in own or listed & {f"layers.{layer}.mlp.gate", f"layers.{layer}.mlp.output"}
    gates = [
        member
        for group in architecture.groups
        for member in group.members
        if member.endswith(("gate_proj", "gate_up_proj"))
    ]
    tapped = [path for site in architecture.sites if site.kind == "gate" for path in site.modules or [site.module]]
    assert sorted(tapped) == sorted(gates)
    assert "lm_head.input" in {site.name for site in architecture.sites}
    names = [site.name for site in architecture.sites]
    assert len(names) == len(set(names))


def test_every_router_has_its_logits(loaded: LoadedModel, architecture: Architecture, profile: Profile) -> None:
    routers = [site for site in architecture.sites if site.kind == "router_logits"]
    assert [site.name for site in routers] == [
        f"layers.{bank.path.split('layers.')[1][0]}.mlp.router" for bank in architecture.expert_lists
    ]
    for site in routers:
        found = profile.whole(site.name)
        assert found is not None
        assert len(found.channel_amax) == 4


def test_every_site_is_measured_on_every_token(
    family: str, profile: Profile, corpus: TokenizedCorpus, architecture: Architecture
) -> None:
    total = sum(len(sample.ids) for sample in corpus.samples)
    few = {row.module for row in profile.provenance.unmeasured if row.weights}
    for site in profile.sites:
        found = profile.whole(site.name)
        if site.kind == "expert_input":
            assert (found.tokens if found else 0) >= 16 or set(site.members) <= few
        elif site.parts or site.modules:
            assert found is not None
            assert found.tokens == total * CHOSEN.get(family, 2)
        else:
            assert found is not None, site.name
            assert found.tokens == total, site.name
            assert found.distribution.counts.sum() == total * len(found.channel_amax)


def test_a_skeleton_has_the_sites_of_the_loaded_model(family: str, architecture: Architecture) -> None:
    if family == "ling":
        pytest.skip("a test module, not a configuration of transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(family_config(family))
    linearize(model)
    assert discover(model) == architecture


@pytest.mark.parametrize("name", ["phi3", "glm4"])
def test_the_gate_of_a_fused_projection_is_what_its_activation_is_given(
    name: str, tiny_loaded: LoadedModel, corpus: TokenizedCorpus
) -> None:
    loaded = loaded_from(family_model(name), tiny_loaded)
    given: list[Tensor] = []
    hook = loaded.model.get_submodule("model.layers.1.mlp.activation_fn").register_forward_pre_hook
    handle = hook(lambda _module, args: given.append(args[0].reshape(-1, args[0].shape[-1])))
    profile = measure(loaded, corpus)
    handle.remove()
    found = profile.whole("layers.1.mlp.gate")
    assert found is not None
    x = torch.cat(given).float()
    assert found.range == (float(x.min()), float(x.max()))
    assert torch.equal(torch.from_numpy(found.channel_amax), x.abs().amax(0))


# Planted spikes ------------------------------------------------------------------------------------------------------


class Plant:
    """Puts one value into a site's tensor, before it is observed, and knows at which token."""

    def __init__(self, model: nn.Module, architecture: Architecture, site: SiteInfo) -> None:
        self.model, self.site = model, site
        self.bank = next((bank for bank in architecture.expert_lists if site.module.startswith(f"{bank.path}.")), None)
        self.hidden = self.given = torch.empty(0)
        self.position: int | None = None if self.bank else TOKEN

    @contextmanager
    def planted(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.bank:
                parent = self.bank.path.rpartition(".")[0]
                for name, paths in (("hidden", (parent, self.bank.path)), ("given", self.bank.experts)):
                    for path in paths:
                        hook = self.model.get_submodule(path).register_forward_pre_hook
                        stack.callback(hook(self._see(name), with_kwargs=True).remove)
            for path in self.site.modules or [self.site.module]:
                module = self.model.get_submodule(path)
                if self.site.tap == "input":
                    handle = module.register_forward_pre_hook(self._into_input, with_kwargs=True)
                else:
                    handle = module.register_forward_hook(self._into_output)
                stack.callback(handle.remove)
            yield

    def _into_input(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self._set(first_tensor((*args, *kwargs.values())))

    def _into_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._set(router_logits(output, 4) if self.site.kind == "router_logits" else first_tensor(output))

    def _see(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            x = first_tensor((*args, *kwargs.values()))
            rows = x.reshape(-1, x.shape[-1])
            # Llama 4 gives its experts every token once for each of them: not the tokens themselves.
            if name == "given" or not len(self.hidden) or len(rows) == len(self.hidden):
                setattr(self, name, rows.clone())

        return hook

    def _set(self, x: Tensor) -> None:
        row = TOKEN
        if self.bank:
            rows = self.given.any(-1).nonzero()[:, 0]
            if self.position is not None or not len(rows):
                return
            row = int(rows[0])
            same = (self.hidden == self.given[row]).all(-1).nonzero()[:, 0]
            self.position = int(same[0]) if len(same) else row  # Llama 4 scales its rows and keeps their order
        x[(*[0] * (x.ndim - 2), row, CHANNEL)] = SPIKE  # leading axes are one: a batch of one sample


def find_spikes(loaded: LoadedModel, architecture: Architecture, sites: Sequence[SiteInfo]) -> int:
    """Plant a spike in each of these sites in turn and find it at its sample, token and channel; how many it was."""
    corpus = random_corpus([40, 33, 33, 29, 24, 20, 11, 3])
    one = TokenizedCorpus(samples=corpus.samples[:1], info=corpus.info)
    ids = one.samples[0].ids
    merged = {part: site.name for site in architecture.sites for part in site.parts}
    planted = 0
    for site in sites:
        if site.parts:
            continue
        plant = Plant(loaded.model, architecture, site)
        with plant.planted():
            profile = measure(loaded, one)
        if plant.position is None:
            continue  # an expert without a token in this sample
        planted += 1
        for name in filter(None, [site.name, merged.get(site.name)]):
            found = profile.whole(name)
            assert found is not None
            peak = found.peaks
            assert (peak.value[0], peak.position[0], peak.channel[0]) == (SPIKE, plant.position, CHANNEL), name
            assert (peak.sample[0], peak.token[0]) == (one.samples[0].index, ids[plant.position]), name
            assert float(found.channel_amax[CHANNEL]) == SPIKE
    return planted


def test_a_planted_spike_is_found_where_it_was_planted(loaded: LoadedModel, architecture: Architecture) -> None:
    assert find_spikes(loaded, architecture, architecture.sites) >= 10


# Experts -------------------------------------------------------------------------------------------------------------


def audited(loaded: LoadedModel, corpus: TokenizedCorpus) -> Card:
    profile = measure(loaded, corpus, batch=BatchLimit(2))
    simulation = simulate(loaded, profile, corpus.samples, list(SCHEMES.values()), evaluation_tokens=64)
    return build_card(profile, [], simulation, load_policy("default"), timings={})


def moe(tiny_loaded: LoadedModel, name: str = "gpt-oss") -> Any:
    model = family_model(name)
    linearize(model)
    return loaded_from(model, tiny_loaded)


def test_experts_are_simulated_group_by_group(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    card = audited(moe(tiny_loaded), corpus)
    assert card.coverage.linears_measured == card.coverage.linears
    rows = [row for row in card.simulation.groups if row.group == "layers.1.mlp.experts.down_proj"]
    assert len(rows[0].members) == 4
    assert all(row.damage for row in rows)
    assert not [finding for finding in card.findings if finding.code == "QA101"]


def test_a_dead_expert_is_inconclusive(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    loaded = moe(tiny_loaded)
    with torch.no_grad():
        loaded.model.get_submodule("model.layers.1.mlp.router").bias[2] = -1e4
    card = audited(loaded, corpus)
    dead = [row for row in card.coverage.unmeasured if row.weights]
    assert {row.module for row in dead} == {f"model.layers.1.mlp.experts.2.{p}_proj" for p in ("gate", "up", "down")}
    assert {row.reason for row in dead} == {"expert saw 0 tokens, fewer than 16"}
    assert card.coverage.linears - card.coverage.linears_measured == 3
    assert {scheme.status for scheme in card.verdict.schemes} == {"INCONCLUSIVE"}
    assert "QA101" in {finding.code for finding in card.findings}


def test_experts_that_bypass_their_linears_are_inconclusive(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    loaded = moe(tiny_loaded)
    expert = loaded.model.get_submodule("model.layers.0.mlp.experts.1")
    expert.forward = lambda x: x @ expert.up_proj.weight.T @ expert.down_proj.weight.T
    card = audited(loaded, corpus)
    silent = {row.module for row in card.coverage.unmeasured if "never ran" in row.reason}
    assert silent == {f"model.layers.0.mlp.experts.1.{p}_proj" for p in ("gate", "up", "down")}
    assert {scheme.status for scheme in card.verdict.schemes} == {"INCONCLUSIVE"}


def test_stacked_experts_that_are_not_split_are_inconclusive(tiny_loaded: LoadedModel, corpus: TokenizedCorpus) -> None:
    card = audited(loaded_from(family_model("mixtral"), tiny_loaded), corpus)
    assert {row.module for row in card.coverage.unmeasured if row.weights} >= {"model.layers.0.mlp.experts"}
    assert {scheme.status for scheme in card.verdict.schemes} == {"INCONCLUSIVE"}


def test_padding_never_reaches_an_expert(tiny_loaded: LoadedModel) -> None:
    loaded = moe(tiny_loaded, "qwen3-moe")
    corpus = random_corpus([31, 5, 3, 2])
    together = measure(loaded, corpus, batch=BatchLimit(4))
    for name in ("layers.0.mlp.experts.down_proj.input", "layers.1.mlp.experts.gate_up_proj.input"):
        found = together.whole(name)
        assert found is not None
        assert found.extremes.tokens.tolist() == [2 * len(sample.ids) for sample in corpus.samples]
        assert (found.peaks.position < [len(corpus.samples[i].ids) for i in found.peaks.sample]).all()


def test_sites_of_a_large_mixture_are_listed_without_weights() -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=4096, num_hidden_layers=94, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=1536,
        num_attention_heads=64, num_key_value_heads=4, head_dim=128,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    linearize(model)
    architecture = discover(model)
    assert sum(parameter.numel() for parameter in model.parameters()) > 200e9
    assert len(architecture.expert_lists) == 94
    assert sum(len(site.parts) for site in architecture.sites) == 94 * 128 * 2
