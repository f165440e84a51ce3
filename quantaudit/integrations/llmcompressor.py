"""`AuditModifier`: an audit inside an llm-compressor recipe, before anything is quantized.

Importing this module registers the modifier (llm-compressor has no plug-in entry point):

    import quantaudit.integrations.llmcompressor

    audit_stage:
      audit_modifiers:
        AuditModifier:
          policy: default
          profile: audit.safetensors
    quant_stage:
      quant_modifiers:
        QuantizationModifier: …

Under `oneshot`'s default pipeline, `independent`, every modifier gets a calibration pass of its own, in the recipe's
order: the audit's ends before the quantization's begins. Under any other, all share one pass, in which layers are
quantized while later ones have not been seen: there the audit would come too late, and says so before the pass starts.
Behind SmoothQuantModifier it sees smoothed activations, before it the model's own.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.utils import match_named_modules, match_targets
from llmcompressor.core import Event, State, active_session
from llmcompressor.modeling.moe.context import get_calibrate_all_experts_flag
from llmcompressor.modifiers import Modifier, ModifierFactory
from llmcompressor.modifiers.quantization import QuantizationMixin
from llmcompressor.modifiers.utils.hooks import HooksMixin
from loguru import logger
from pydantic import PrivateAttr
from torch import Tensor, nn

from quantaudit.card.schema import Finding
from quantaudit.common.choices import Experts
from quantaudit.conform.rules.ranges import without_mask
from quantaudit.errors import AuditError, MeasurementError
from quantaudit.integrations.verdict import judge_inputs, measured, own_tokens
from quantaudit.measure.observe import Observation
from quantaudit.measure.profile import Profile, save_profile
from quantaudit.model.forward.attention import GivenMasks
from quantaudit.model.forward.hooks import watch_inputs
from quantaudit.model.forward.masked import MaskedBatch
from quantaudit.policy import Policy, load_policy

SHOWN = 5
"""Findings that an error spells out."""


class AuditModifier(Modifier):  # type: ignore[misc]
    """Audits calibration activations and stops the recipe where they fail a policy.

    policy: a shipped policy's name or a .yaml file. profile: where to save what was measured, if anywhere; an existing
    file is replaced. Raises AuditError, with nothing quantized, on: NaN or infinite inputs, static scales that round
    more than the policy's share of an input to zero, inputs that no token reached, and too little headroom in float16.
    Statistics do not show what happens to the model's output: `quantaudit gate` decides on simulations.
    """

    policy: str = "default"
    profile: str | None = None
    requires_calibration_data: bool = True

    _rules: Policy | None = PrivateAttr(None)
    _targets: dict[str, QuantizationArgs] = PrivateAttr(default_factory=dict)
    _observation: Observation | None = PrivateAttr(None)
    _following: Any = PrivateAttr(None)
    _attached: ExitStack = PrivateAttr(default_factory=ExitStack)
    _findings: list[Finding] = PrivateAttr(default_factory=list)

    @property
    def findings(self) -> list[Finding]:
        """Findings of the audit; empty before it has run."""
        return self._findings

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Check what can be checked before a pass: the policy, the data, the place in the recipe."""
        self._rules = load_policy(self.policy)
        modifiers = active_session().lifecycle.recipe.modifiers
        place = next(index for index, modifier in enumerate(modifiers) if modifier is self)
        earlier = [type(modifier).__name__ for modifier in modifiers[:place] if isinstance(modifier, QuantizationMixin)]
        if earlier:
            raise AuditError(
                f"the audit would come too late: {earlier[0]} stands before AuditModifier",
                where="recipe",
                hint="put AuditModifier before every modifier that quantizes",
            )
        if state.data.calib is None:
            raise AuditError(
                "there is no calibration data to audit", where="oneshot", hint="give `dataset=`, or leave the audit out"
            )
        self._targets = quantized_inputs(state.model, modifiers[place + 1 :])
        experts: Experts = "all" if get_calibrate_all_experts_flag() else "routed"
        self._observation = Observation(state.model, experts=experts)
        return True

    def on_calibration_start(self, state: State, event: Event, **kwargs: Any) -> None:
        """Attach, in a pass of the audit's own; refuse one that is shared."""
        others = [type(m).__name__ for m in active_session().lifecycle.recipe.modifiers if m is not self]
        if others:
            raise AuditError(
                f"the audit would come too late: it shares its calibration pass with {others[0]}, which changes layers "
                "before later ones have been seen",
                where="oneshot",
                hint='run with the default pipeline="independent", or leave AuditModifier out of the recipe',
            )
        observation = self._observation
        assert observation is not None
        following = self._following = _Following(observation, state)
        self._attached.enter_context(observation.attached(ignore=lambda: HooksMixin._HOOKS_DISABLED))
        # Before the taps: it says which batch they are about to see.
        for module in following.entrances(state.model):
            self._attached.enter_context(watch_inputs(module, following.enter, first=True))

    def on_calibration_end(self, state: State, event: Event, **kwargs: Any) -> None:
        """Judge what was seen. Raises AuditError where it fails."""
        self._attached.close()
        observation, rules = self._observation, self._rules
        assert observation is not None
        assert rules is not None
        try:
            profile = observation.profile()
        except MeasurementError as error:
            raise AuditError("no calibration token was seen", where="oneshot", hint="give a dataset") from error
        finally:
            self._observation = None  # its histograms are not needed any more
        if self.profile is not None:
            save_profile(profile, Path(self.profile))
        judged = profile if get_calibrate_all_experts_flag() else own_tokens(profile)
        self._findings = judge_inputs(judged, self._targets, rules)
        if profile.provenance.environment.attention == "eager":
            self._findings += without_mask(self._following.given_masks.absent)
        self._report(profile, rules)

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Detach, whatever happened."""
        self._attached.close()
        return True

    def _report(self, profile: Profile, rules: Policy) -> None:
        static = sum(args.dynamic is False for args in self._targets.values())
        scope = (
            f"{measured(profile)}; {static} static and {len(self._targets) - static} dynamic inputs; nothing simulated"
        )
        for finding in self._findings:
            if finding.severity != "error":
                logger.warning(f"quantaudit {finding.code} {finding.module or ''}: {finding.message}")
        failed = [finding for finding in self._findings if finding.severity == "error"]
        if not failed:
            logger.info(f"quantaudit: passed policy {rules.name} ({scope})")
            return
        lines = [f"{finding.code} {finding.module or ''}: {finding.message}" for finding in failed[:SHOWN]]
        more = [f"and {len(failed) - SHOWN} more"] if len(failed) > SHOWN else []
        raise AuditError(
            f"policy {rules.name} failed before anything was quantized ({scope}):\n  " + "\n  ".join([*lines, *more]),
            where="AuditModifier",
            hint=f"{failed[0].remedy} Load the model again: the recipe's modifiers have prepared this one already.",
        )


class _Following:
    """Tells an observation which batch is on its way through llm-compressor's pipelines, which run layer by layer.

    The first pass over all batches goes through the embedding, which shows their token ids; from then on the pipeline's
    own batch index distinguishes them. Masks do not reach most layers, and are looked up in the data by their ids.
    """

    def __init__(self, observation: Observation, state: State) -> None:
        self._observation = observation
        self._state = state
        self._batches: dict[int, MaskedBatch] = {}
        self._masks: dict[bytes, Tensor] = {}
        self._padded = False
        self.given_masks = GivenMasks(state.model, observation.architecture)
        for given in state.data.calib:
            mask = given.get("attention_mask") if hasattr(given, "get") else None
            if mask is not None and not bool(mask.bool().all()):
                self._padded = True
                self._masks |= {_key(ids): valid for ids, valid in zip(given["input_ids"], mask.bool(), strict=True)}
            elif hasattr(given, "get") and given.get("input_ids") is not None:
                self._masks |= {_key(ids): torch.ones_like(ids).bool() for ids in given["input_ids"]}

    def entrances(self, model: nn.Module) -> list[nn.Module]:
        """The embedding, and every module that a site taps or that may be reached on its own."""
        architecture = self._observation.architecture
        paths = {path for site in architecture.sites for path in site.modules or [site.module]}
        self._embedding = model.get_input_embeddings()  # type: ignore[operator]
        rest = [model.get_submodule(path) for path in sorted(paths | set(architecture.blocks))]
        return [self._embedding, *(module for module in rest if module is not self._embedding)]

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module is about to run on the pipeline's current batch."""
        if HooksMixin._HOOKS_DISABLED:
            return
        self.given_masks.note(module, kwargs)
        index = self._state.current_batch_idx
        if module is self._embedding and index not in self._batches:
            ids = args[0] if args else next(iter(kwargs.values()))
            self._batches[index] = self._observation.begin(ids, self._mask(ids) if self._padded else None)
        elif index in self._batches:
            self._observation.resume(self._batches[index])

    def _mask(self, input_ids: Tensor) -> Tensor:
        rows = [self._masks.get(_key(ids)) for ids in input_ids]
        if any(row is None for row in rows):
            raise MeasurementError(
                "a padded batch is none of those that the data held before",
                where="AuditModifier",
                hint="give a data loader that yields the same samples each time, or batches without padding",
            )
        return torch.stack([row for row in rows if row is not None]).to(input_ids.device)


def quantized_inputs(model: nn.Module, modifiers: list[Modifier]) -> dict[str, QuantizationArgs]:
    """Linears whose inputs these modifiers quantize, as compressed-tensors matches them, with how."""
    inputs: dict[str, QuantizationArgs] = {}
    for modifier in modifiers:
        if not isinstance(modifier, QuantizationMixin):
            continue
        config = modifier.resolved_config
        schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
        for name, module in match_named_modules(model, schemes, config.ignore):
            if isinstance(module, nn.Linear):
                args = schemes[match_targets(name, module, schemes)[0]].input_activations
                if args is not None:
                    inputs[name] = args
    return inputs


def _key(ids: Tensor) -> bytes:
    return bytes(ids.cpu().contiguous().view(torch.uint8).numpy())


ModifierFactory.register("AuditModifier", AuditModifier)
