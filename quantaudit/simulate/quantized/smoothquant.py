"""SmoothQuant as llm-compressor applies it: calibrated on a model, and applied for as long as a context lasts.

Factors and weights are computed by SmoothQuantModifier itself; only what it would observe is observed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from quantaudit.common.logs import without_library_logs
from quantaudit.common.outputs.resume import Pace, units_of
from quantaudit.common.progress import Advance, no_advance
from quantaudit.common.ranks.team import deal, gather, part_name
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import CorpusError
from quantaudit.measure.collector import StatisticsCollector
from quantaudit.measure.finished_batches import combine_ranks, run_batches
from quantaudit.measure.profile import Profile
from quantaudit.model.experts import calibrate_all_experts
from quantaudit.model.forward.attention import eager_attention
from quantaudit.model.forward.batches import batches, forward, last_logit_only
from quantaudit.model.forward.capture import capture
from quantaudit.model.forward.hooks import watch_outputs
from quantaudit.model.sites import discover, non_text_sites
from quantaudit.recipe.resolved import SmoothQuant
from quantaudit.simulate.quantized.modules import copied_parameters

Ranges = Mapping[str, tuple[Tensor, Tensor]]
"""By path of a module, the least and the greatest value of each channel of its output: [channels], in its dtype."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CalibratedSmoothQuant:
    """A SmoothQuant with what it saw of the outputs that it divides."""

    spec: SmoothQuant
    ranges: Ranges


@contextmanager
def smoothed(model: nn.Module, steps: Sequence[CalibratedSmoothQuant]) -> Iterator[dict[str, Tensor]]:
    """Within the context the model's weights are smoothed, one step after the other; then they are the very same again.

    Copies of what changes are held in addition to the originals. Yields the factors that inputs of Linears are divided
    by: module path → [in_features].
    """
    if not steps:
        yield {}
        return
    with copied_parameters(model, {*_offset_norms(model), *(path for step in steps for path in step.spec.changed)}):
        factors: dict[str, Tensor] = {}
        for step in steps:
            for path, factor in _apply(model, step).items():
                factors[path] = factors[path] * factor if path in factors else factor
        yield factors


def calibrate(
    model: nn.Module,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    smooth: Sequence[SmoothQuant],
    sites: Sequence[str],
    *,
    ranges: Ranges | None = None,
    progress: Advance = no_advance,
) -> tuple[tuple[CalibratedSmoothQuant, ...], Profile]:
    """What each step divides by, and the profile with the calibration statistics of `sites` on the smoothed model.

    samples: those of the profile; the calibration split is run once for every step, each on the model that the steps
    before have changed, and once more, where there are `sites`, for their statistics. Samples run one at a time with
    the attention and the experts of the profile, as `oneshot` runs them. ranges: `observed_ranges` of the model as it
    is, where they are known; the first step then runs nothing. `progress` is called after each sample, with its tokens.
    Raises CorpusError where there is something to smooth and no calibration sample.
    """
    steps: tuple[CalibratedSmoothQuant, ...] = ()
    for spec in smooth:
        if steps or ranges is None:
            with smoothed(model, steps):
                seen = observed_ranges(model, profile, samples, spec.smooth_layers, progress=progress)
        else:
            seen = {path: ranges[path] for path in spec.smooth_layers if path in ranges}
        steps = (*steps, CalibratedSmoothQuant(spec=spec, ranges=seen))
    if not steps or not sites:
        return steps, profile
    return steps, measured_smoothed(model, profile, samples, steps, sites, progress=progress)


def observed_ranges(
    model: nn.Module,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    paths: frozenset[str],
    *,
    progress: Advance = no_advance,
) -> Ranges:
    """Output ranges of the modules at `paths` over the calibration samples; those that never ran are left out."""
    units, pace, device = units_of("ranges before smoothing"), Pace(), next(model.parameters()).device
    key = f"samples{part_name()}"
    with _as_measured(model, profile), _observed(model, paths) as ranges, last_logit_only(model):
        finished = _restore(units.get(key), ranges, device)
        for number, batch in enumerate(batches(_calibration(samples), device=device), 1):
            if number > finished:
                forward(model, batch)
                if units.kept and pace.due:
                    with pace.keeping():
                        units.put(key, _kept(number, ranges))
            progress(batch.tokens)
    return _over_all_ranks(ranges, device)


def _over_all_ranks(ranges: Ranges, device: torch.device) -> Ranges:
    """Least and greatest values of what all ranks have seen."""
    united: dict[str, tuple[Tensor, Tensor]] = {}
    for data in gather(_kept(0, ranges)):
        part: dict[str, tuple[Tensor, Tensor]] = {}
        _restore(data, part, device)
        for path, (low, high) in part.items():
            before = united.get(path, (low, high))
            united[path] = torch.minimum(before[0], low), torch.maximum(before[1], high)
    return united


def _kept(samples: int, ranges: Ranges) -> bytes:
    """Ranges after so many samples, for `_restore`."""
    tensors = {f"{end} {path}": part for path, pair in ranges.items() for end, part in zip("lh", pair, strict=True)}
    data: bytes = save({name: part.clone() for name, part in tensors.items()} | {"samples": torch.tensor(samples)})
    return data


def _restore(data: bytes | None, ranges: dict[str, tuple[Tensor, Tensor]], device: torch.device) -> int:
    """Fill in what an interrupted run kept. Returns of how many samples."""
    if data is None:
        return 0
    tensors = {name: part.to(device) for name, part in load(data).items()}
    samples = int(tensors.pop("samples"))
    ranges.update({name[2:]: (low, tensors[f"h {name[2:]}"]) for name, low in tensors.items() if name[0] == "l"})
    return samples


def measured_smoothed(
    model: nn.Module,
    profile: Profile,
    samples: Sequence[TokenizedSample],
    steps: Sequence[CalibratedSmoothQuant],
    names: Sequence[str],
    *,
    progress: Advance = no_advance,
) -> Profile:
    """The profile with calibration statistics of these sites as the smoothed model has them.

    Of an expert's input they are of the site that its static scales come from.
    """
    measured = {profile.by_name[name].all_tokens or name for name in names}
    sites = [site for site in profile.sites if site.name in measured]
    everywhere = profile.experts == "all"
    architecture = discover(model, all_tokens=everywhere)
    gathered = StatisticsCollector(
        architecture, non_text=non_text_sites(model, architecture.sites), all_tokens=everywhere
    )

    with (
        smoothed(model, steps),
        _as_measured(model, profile),
        gathered.routing.follow(model),
        capture(model, sites, gathered.receive) as fired,
        last_logit_only(model),
    ):
        dealt = batches(_calibration(samples), device=next(model.parameters()).device)
        run_batches(model, gathered, dealt, fired=fired, ran=Counter(), progress=progress, stage="smoothed")
    combine_ranks(gathered, fired, Counter())
    statistics = {key: value for key, value in gathered.result().items() if key[0] in measured}
    return replace(profile, statistics={**profile.statistics, **statistics})


def calibration_tokens(samples: Sequence[TokenizedSample]) -> int:
    """Tokens that one pass over the calibration split runs on this rank. Raises CorpusError where there are none."""
    return sum(len(sample.ids) for sample in _calibration(samples))


def _calibration(samples: Sequence[TokenizedSample]) -> list[TokenizedSample]:
    """This rank's calibration samples. Raises CorpusError where no rank has any."""
    calibration = [sample for sample in samples if sample.split == "calibration"]
    if not calibration:
        raise CorpusError("no calibration sample to smooth with", hint="give the corpus that the profile is of")
    return deal(calibration, lambda sample: len(sample.ids))


@contextmanager
def _as_measured(model: nn.Module, profile: Profile) -> Iterator[None]:
    with ExitStack() as stack:
        eager = profile.provenance.environment.attention == "eager"
        stack.enter_context(eager_attention(model) if eager else nullcontext())
        if profile.experts == "all":
            stack.enter_context(calibrate_all_experts())
        yield


@contextmanager
def _observed(model: nn.Module, paths: frozenset[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Ranges of the outputs of modules, filled in as the model runs; of a tuple the first, as the modifier's hook."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(path: str, output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        x_NC = x.detach().reshape(-1, x.shape[-1])
        if not len(x_NC):  # an expert that nothing was routed to
            return
        low, high = x_NC.amin(0), x_NC.amax(0)
        if path in ranges:
            low, high = torch.minimum(ranges[path][0], low), torch.maximum(ranges[path][1], high)
        ranges[path] = low, high

    with ExitStack() as stack:
        for path in paths:
            take = lambda _module, _args, _kwargs, output, path=path: hook(path, output)  # noqa: E731
            stack.enter_context(watch_outputs(model.get_submodule(path), take))
        yield ranges


def _apply(model: nn.Module, step: CalibratedSmoothQuant) -> dict[str, Tensor]:
    """Smooth the present weights of the model in place; Linear → what its input is divided by."""
    from llmcompressor.modeling.offset_norm import norm_calibration_context
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    from llmcompressor.modifiers.transform.smoothquant.base import (
        MINIMUM_SMOOTHING_SCALE,
        SmoothQuantMapping,
        SmoothQuantScale,
    )

    modifier: Any = SmoothQuantModifier(
        smoothing_strength=step.spec.strength,
        algorithm=step.spec.algorithm,
    )
    # What one mapping has used is gone for a later one with the same norm, which the modifier then passes over.
    modifier.scales_ = {
        path: SmoothQuantScale(min_channel_vals=low, max_channel_vals=high) for path, (low, high) in step.ranges.items()
    }
    factors: dict[str, Tensor] = {}
    with without_library_logs(), torch.no_grad(), norm_calibration_context(model):
        for path, balance_layers in step.spec.mappings:
            if path not in modifier.scales_:
                continue
            linears = [model.get_submodule(name) for name in balance_layers]
            low, high = step.ranges[path]
            factor = modifier._calculate_smoothing_scales(linears, high - low).clamp_min(MINIMUM_SMOOTHING_SCALE)
            factors |= dict.fromkeys(balance_layers, factor)
            modifier.resolved_mappings_ = [SmoothQuantMapping(path, model.get_submodule(path), linears)]
            modifier._apply_smoothing(model)
    return factors


def _offset_norms(model: nn.Module) -> list[str]:
    """Norms that multiply by 1 + weight (Gemma): `oneshot` puts others in their place, and rounds all of them."""
    from llmcompressor.modeling.offset_norm import NormCalibrationModule, _is_registered

    classes = {
        cls for module in model.modules() if _is_registered((cls := type(module)).__name__, NormCalibrationModule)
    }
    return [path for path, module in model.named_modules() if type(module) in classes]
