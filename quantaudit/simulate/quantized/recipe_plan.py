"""From what a recipe resolves to on a model to a plan that can be run: which parts exactly, nearly, and not at all."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

from compressed_tensors.quantization import QuantizationScheme
from torch import nn

from quantaudit.common.progress import Stages, no_advance, silent_stages
from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.measure.profile import Profile
from quantaudit.model.sites import Group
from quantaudit.quant.observers import QParams
from quantaudit.quant.ranges import site_qparams
from quantaudit.quant.schemes import Scheme, scheme_from_compressed_tensors
from quantaudit.quant.support import approximations, obstacles
from quantaudit.quant.weights import weight_out_in
from quantaudit.recipe.resolved import ResolvedRecipe
from quantaudit.simulate.cost import calibrating
from quantaudit.simulate.quantized.plan import Plan
from quantaudit.simulate.quantized.smoothquant import Ranges, calibrate, calibration_tokens

_EXPERTS = "static input scales of experts: from routed tokens, where llm-compressor calibrates every expert on all"
_SMOOTHED_EXPERTS = "smoothing inside experts: from routed tokens, where llm-compressor calibrates every expert on all"


def recipe_plan(
    recipe: ResolvedRecipe,
    model: nn.Module,
    groups: Sequence[Group],
    profile: Profile,
    samples: Sequence[TokenizedSample] = (),
    *,
    ranges: Ranges | None = None,
    stages: Stages = silent_stages,
) -> Plan:
    """The plan of one recipe, static ranges from the profile's calibration split by the observers it names.

    A recipe that smooths is calibrated on the model itself: samples are then those of the profile, and all static
    ranges are of the smoothed model; ranges: as for `calibrate`. Modules that cannot be simulated are left alone and
    named. A range that is not finite makes the row non-finite.
    """
    sites, routed = _inputs(profile), _expert_sites(profile)
    schemes, left_out = _translated(recipe, model, sites)
    read = dict.fromkeys(sites[path] for path, scheme in schemes.items() if scheme.static)
    near = list(dict.fromkeys(_approximations(recipe, schemes, sites, routed)))
    work = recipe.calibration_passes - (ranges is not None)
    title = calibrating(recipe.name)
    tick = stages(title, work * calibration_tokens(samples), "tokens") if work > 0 else no_advance
    smoothed, calibration = calibrate(model, profile, samples, recipe.smooth, list(read), ranges=ranges, progress=tick)
    unsimulated = (*recipe.unsimulated, *(f"{_some(paths)}: {reason}" for reason, paths in left_out.items()))
    mark = ", simulated in part" if unsimulated else ", nearly as simulated" if near else ""
    return Plan(
        name=recipe.name,
        title=f"recipe {recipe.name}{mark}",
        schemes=schemes,
        qparams=_ranges(schemes, sites, calibration),
        groups=sum(any(member in schemes for member in group.members) for group in groups),
        digest=recipe.digest,
        approximate=tuple(near),
        unsimulated=unsimulated,
        smoothed=smoothed,
    )


def _translated(
    recipe: ResolvedRecipe, model: nn.Module, sites: Mapping[str, str]
) -> tuple[dict[str, Scheme], dict[str, list[str]]]:
    """Schemes by module path, and by reason the paths of modules that cannot be simulated."""
    left_out: dict[str, list[str]] = {}
    schemes: dict[str, Scheme] = {}
    distinct: dict[int, Scheme] = {}
    for path, resolved in recipe.schemes.items():
        reasons = _reasons(resolved, path, model, sites)
        for reason in reasons:
            left_out.setdefault(reason, []).append(path)
        if reasons:
            continue
        if id(resolved) not in distinct:
            name = f"{recipe.name} {len(distinct) + 1}"
            distinct[id(resolved)] = scheme_from_compressed_tensors(name, recipe.name, resolved)
        schemes[path] = distinct[id(resolved)]
    return schemes, left_out


def _approximations(
    recipe: ResolvedRecipe, schemes: Mapping[str, Scheme], sites: Mapping[str, str], routed: Container[str]
) -> Iterator[str]:
    """What is simulated nearly, not exactly. routed: sites of experts that saw the tokens routed to them alone."""
    for path, scheme in schemes.items():
        yield from approximations(recipe.schemes[path])
        if scheme.static and sites[path] in routed:
            yield _EXPERTS
    if any(sites.get(path) in routed for spec in recipe.smooth for path in spec.smooth_layers):
        yield _SMOOTHED_EXPERTS


def _reasons(scheme: QuantizationScheme, path: str, model: nn.Module, sites: Mapping[str, str]) -> list[str]:
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        return ["an embedding's weights are not simulated"]
    if path not in sites:
        return ["this module is not among those that were measured"]
    return obstacles(scheme, tuple(weight_out_in(module).shape))


def _ranges(schemes: Mapping[str, Scheme], sites: Mapping[str, str], profile: Profile) -> dict[str, QParams | None]:
    """By module path; modules that read one tensor under one scheme share an object, and with it a quantizer."""
    distinct: dict[tuple[str, str], QParams | None] = {}
    by_path: dict[str, QParams | None] = {}
    for path, scheme in schemes.items():
        if scheme.static and scheme.input_activations is not None and scheme.observer is not None:
            key = (sites[path], scheme.name)
            if key not in distinct:
                distinct[key] = site_qparams(profile, sites[path], scheme.input_activations, scheme.observer)
            by_path[path] = distinct[key]
    return by_path


def _inputs(profile: Profile) -> dict[str, str]:
    """Module path → the site that it reads; that of the single expert rather than of all experts together."""
    layer_inputs = {m: site.name for site in profile.sites if site.kind == "linear_input" for m in site.members}
    return layer_inputs | {m: site.name for site in profile.sites if site.kind == "expert_input" for m in site.members}


def _expert_sites(profile: Profile) -> set[str]:
    """Inputs of experts whose range over all tokens was not measured."""
    return {site.name for site in profile.sites if site.kind == "expert_input" and site.all_tokens is None}


def _some(paths: Sequence[str]) -> str:
    return paths[0] if len(paths) == 1 else f"{len(paths)} modules such as {paths[0]}"


def check_names(names: Iterable[str], taken: Iterable[str]) -> str | None:
    """The first name that is used twice, among recipes or by what is simulated anyway; None where all differ."""
    used = set(taken)
    for name in names:
        if name in used:
            return name
        used.add(name)
    return None
