"""Taps see what plain hooks see, count every member, and are gone whatever happens."""

from __future__ import annotations

from collections import Counter, namedtuple
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from quantaudit.model.forward.batches import last_logit_only
from quantaudit.model.forward.capture import capture, first_tensor, with_first_tensor
from quantaudit.model.sites import discover
from quantaudit.provenance import SiteInfo
from tests.builders import hooks, site_info, tiny_model

IDS = torch.arange(6)[None]


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama")


def run(model: nn.Module) -> None:
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)


def broken(model: nn.Module) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken forward")

    model.get_submodule("model.layers.1.mlp.down_proj").forward = fail


def ignore(site: str, tensor: Tensor) -> None:
    """A receiver that keeps nothing."""


def test_hooks_are_removed_after_success(model: nn.Module) -> None:
    before = hooks(model)
    with capture(model, discover(model).sites, ignore):
        assert hooks(model) > before
        run(model)
    assert hooks(model) == before


def test_hooks_are_removed_after_an_error_in_the_forward(model: nn.Module) -> None:
    before = hooks(model)
    broken(model)
    with pytest.raises(RuntimeError, match="broken forward"), capture(model, discover(model).sites, ignore):
        run(model)
    assert hooks(model) == before


def test_hooks_are_removed_after_an_error_in_the_receiver(model: nn.Module) -> None:
    before = hooks(model)

    def fail(site: str, tensor: Tensor) -> None:
        raise ZeroDivisionError(site)

    with pytest.raises(ZeroDivisionError, match="embedding"), capture(model, discover(model).sites, fail):
        run(model)
    assert hooks(model) == before


def test_hooks_are_removed_after_an_interrupt(model: nn.Module) -> None:
    before = hooks(model)
    with suppress(KeyboardInterrupt), capture(model, discover(model).sites, ignore):
        raise KeyboardInterrupt
    assert hooks(model) == before


def test_no_hook_stays_where_one_site_does_not_exist(model: nn.Module) -> None:
    before = hooks(model)
    sites = [*discover(model).sites, site_info("elsewhere", module="model.nowhere")]
    with pytest.raises(AttributeError, match="nowhere"), capture(model, sites, ignore):
        pass
    assert hooks(model) == before


def test_foreign_hooks_stay(model: nn.Module) -> None:
    seen: list[int] = []
    model.get_submodule("model.norm").register_forward_hook(lambda *_: seen.append(1))
    with capture(model, discover(model).sites, ignore):
        run(model)
    run(model)
    assert len(seen) == 2


def test_every_member_and_every_output_is_counted(model: nn.Module) -> None:
    architecture = discover(model)
    with capture(model, architecture.sites, ignore) as fired:
        run(model)
        run(model)
    members = {member for group in architecture.groups for member in group.members}
    outputs = {f"{site.module}:output" for site in architecture.sites if site.tap == "output"}
    assert fired == Counter(dict.fromkeys(members | outputs, 2))


def test_a_site_is_received_once_however_many_members_read_it(model: nn.Module) -> None:
    received: Counter[str] = Counter()
    sites = discover(model).sites
    with capture(model, sites, lambda site, _: received.update([site])):
        run(model)
    assert received == Counter(dict.fromkeys((site.name for site in sites), 1))


def test_a_member_that_does_not_run_is_not_counted(model: nn.Module) -> None:
    mlp = model.get_submodule("model.layers.0.mlp")
    mlp.forward = lambda x: mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)))
    with capture(model, discover(model).sites, ignore) as fired:
        run(model)
    assert fired["model.layers.0.mlp.gate_proj"] == 1
    assert fired["model.layers.0.mlp.up_proj"] == 0
    assert fired["model.layers.1.mlp.up_proj"] == 1


def test_received_tensors_are_the_modules_own(model: nn.Module) -> None:
    """Against hooks that know nothing of sites: the same tensors, not copies of something near."""
    seen: dict[tuple[str, str], Tensor] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _m, args, kwargs, output, name=name: seen.update(
                {
                    (name, "input"): next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None),
                    (name, "output"): output if isinstance(output, Tensor) else output[0],
                }
            ),
            with_kwargs=True,
        )
    received: dict[str, Tensor] = {}
    sites: tuple[SiteInfo, ...] = discover(model).sites
    with capture(model, sites, received.__setitem__):
        run(model)
    for site in sites:
        assert received[site.name] is seen[site.module, site.tap], site.name


def test_all_members_of_a_site_read_the_same_tensor(model: nn.Module) -> None:
    inputs: dict[str, Tensor] = {}
    groups = discover(model).groups
    for group in groups:
        for member in group.members:
            model.get_submodule(member).register_forward_pre_hook(
                lambda _m, args, member=member: inputs.update({member: args[0]})
            )
    run(model)
    for group in groups:
        assert len({id(inputs[member]) for member in group.members}) == 1, group.name


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: (None, x, x + 1), lambda x: [x]])
def test_the_hidden_states_are_the_first_tensor(wrap: object) -> None:
    x = torch.ones(2)
    assert first_tensor(wrap(x)) is x


# One logit -----------------------------------------------------------------------------------------------------------


def test_one_logit_computes_the_last_position_only_and_is_undone(model: nn.Module) -> None:
    before = hooks(model)
    with torch.no_grad():
        whole = model(input_ids=IDS, use_cache=False).logits
        with last_logit_only(model):
            last = model(input_ids=IDS, use_cache=False).logits
        again = model(input_ids=IDS, use_cache=False).logits
    assert last.shape == (1, 1, whole.shape[-1])
    torch.testing.assert_close(last, whole[:, -1:])
    assert torch.equal(again, whole)
    assert hooks(model) == before


def test_one_logit_is_undone_after_an_error(model: nn.Module) -> None:
    before = hooks(model)
    broken(model)
    with pytest.raises(RuntimeError, match="broken forward"), last_logit_only(model):
        run(model)
    assert hooks(model) == before


def test_what_goes_into_the_output_projection_is_still_seen_whole(model: nn.Module) -> None:
    received: dict[str, Tensor] = {}
    with capture(model, discover(model).sites, received.__setitem__), last_logit_only(model):
        run(model)
    assert received["lm_head.input"].shape == (1, 6, 64)
    assert torch.equal(received["lm_head.input"], received["final_norm"])


def test_a_model_without_output_projection_is_left_alone() -> None:
    class Bare(nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with last_logit_only(Bare()) as nothing:
        assert nothing is None


@pytest.mark.parametrize("kind", ["tensor", "tuple", "named", "mapping"])
def test_outputs_with_another_first_tensor_keep_their_type_and_names(kind: str) -> None:
    old, new, other = torch.zeros(2), torch.ones(2), torch.full((2,), 2.0)
    named = namedtuple("named", ["weights", "hidden_states", "other"])
    outputs = {
        "tensor": old,
        "tuple": (None, old, other),
        "named": named(None, old, other),
        "mapping": ModelOutput(hidden_states=old, other=other),
    }
    changed = with_first_tensor(outputs[kind], new)
    assert type(changed) is type(outputs[kind])
    assert first_tensor(changed) is new
    if kind in ("named", "mapping"):
        assert changed.hidden_states is new
        assert changed.other is other
