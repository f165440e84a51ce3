"""The advised recipe as a file, checked: llm-compressor must read it, and resolve it to exactly what was simulated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile

from torch import nn

from quantaudit.advise.run import Advice
from quantaudit.advise.written.edited_recipe import edited
from quantaudit.advise.written.write_recipe import Target, config_groups, smooth_groups, write_recipe
from quantaudit.card.schema import AdviceChange, AdviceInfo, AdvicePoint
from quantaudit.common.rounding import decimals, significant
from quantaudit.errors import RecipeError
from quantaudit.model.engine_units import engine_name
from quantaudit.model.sites import Group
from quantaudit.provenance import ModelInfo
from quantaudit.recipe.digest import identity
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.patterns import exact_patterns
from quantaudit.recipe.resolve import Resolution, resolve


def amended(advice: Advice, info: ModelInfo, model: nn.Module, original: str = "") -> str:
    """YAML of the advised recipe. Raises RecipeError should it not resolve to the simulated one.

    original: the recipe as it was written, which is edited where that does; without one, or else, all is written anew
    under the comments that the original begins with.
    """
    for text in _texts(advice, info, model, original):
        try:
            resolved = resolve(parse_recipe(text, "advised recipe"), model)
        except RecipeError:  # the next way to write it may be read
            continue
        reached = tuple(smoothing.spec for smoothing in resolved.smoothings)
        alike = resolved.digest == advice.row.digest and reached == advice.smooth
        if alike and not (resolved.unsimulated or resolved.overlaps):
            return text
    raise RecipeError(
        "the advised recipe does not resolve to what was simulated",
        where=advice.info.recipe,
        hint="please report this with the model's name",
    )


def _texts(advice: Advice, info: ModelInfo, model: nn.Module, original: str) -> Iterator[str]:
    """Ways to write it, the best first: layers that are smoothed alike are named together; or each by itself, where
    llm-compressor puts norms and Linears of some together otherwise.
    """
    changes = {change.group: change for change in advice.info.changes}
    modules = {module.name for module in info.modules}
    targets = partial(targets_of, changes=changes, info=info)
    left = targets([group for group, scheme in advice.groups.values() if scheme is None])
    if advice.unmeasured:
        left.append(Target(names=advice.unmeasured, reason="not measured"))
    groups = [group for group, _ in advice.groups.values()]

    def reason(names: Sequence[str]) -> str:
        return explain([changes[name] for name in names if name in changes])

    smoothed = [smooth_groups(advice.smooth, groups, reason, among) for among in (modules, ())]
    lines = header(advice.info, info)
    if original:
        parsed = parse_recipe(original, advice.info.recipe)
        written = resolve(parsed, model)
        schemes = {name: identity(scheme) for name, scheme in written.schemes.items()}
        changed = {
            group.name: (group, scheme)
            for group, scheme in advice.groups.values()
            if scheme is not None and any(schemes.get(member) != identity(scheme) for member in group.members)
        }
        kept = {
            entry: targets([group for group in of if group.name not in changed])
            for entry, of in _by_pattern(groups, written).items()
            if any(group.name in changed for group in of)
        }
        rows = config_groups(changed.values(), targets)
        for smooth in smoothed:
            text = edited(original, parsed, header=lines, changed=rows, kept=kept, left=left, smooth=smooth)
            if text is not None:
                yield text
    lines += _leading_comments(original)
    for smooth in smoothed:
        yield write_recipe(config_groups(advice.groups.values(), targets), header=lines, left=left, smooth=smooth)


def _by_pattern(groups: Sequence[Group], written: Resolution) -> dict[str, list[Group]]:
    """Fused groups by the entry of `config_groups` that names them, or matches them by a pattern; not by a class."""
    named: dict[str, list[Group]] = {}
    for group in groups:
        origin = written.origins.get(group.members[0])
        if origin is not None and (origin.target.startswith("re:") or origin.target in group.members):
            named.setdefault(origin.group, []).append(group)
    return named


def _leading_comments(text: str) -> list[str]:
    """The comment that a recipe begins with, line by line."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line.removeprefix("#").removeprefix(" ") for line in lines]


def header(advice: AdviceInfo, model: ModelInfo) -> list[str]:
    """What the file is, for whom, and what it was simulated to cost."""
    lines = [
        f"{advice.recipe}, amended for {model.name} (weights {model.fingerprint[:16]}): {advice.goal}.",
        f"Simulated on {advice.tokens:,} tokens: {in_words(advice.before)} as written, "
        f"{in_words(advice.advised, advice.budget)} here,",
        f"where {advice.advised.kept or 0.0:.1%} of the quantized Linears' MACs keep the format of the original.",
    ]
    lines += [f"For comparison, {point.name}: {in_words(point)}." for point in advice.references]
    if any(change.option.startswith("minmax") for change in advice.changes):
        lines.append(
            "Ranges of `minmax` depend on the order of calibration samples: calibrate on the card's, in its order,"
        )
        lines.append("one sample a batch, or verify what you get.")
    if any(change.option.startswith("smoothed") for change in advice.changes):
        lines.append("Norms are smoothed first, then ranges are calibrated: run `oneshot` with its default,")
        lines.append('pipeline="independent", as "basic" and "sequential" would do both at once.')
    if not advice.met:
        reached = () if advice.advised.kl is None else (advice.advised.kl,)
        budget = significant(advice.budget or 0.0, *reached, digits=4, zeros=False)
        lines.append(f"The goal was NOT met: the budget was a KL of {budget}.")
    return lines


def in_words(point: AdvicePoint, budget: float | None = None) -> str:
    """A point in words, its KL on its own side of the budget."""
    if point.kl is None:
        return "no finite KL"
    limits = () if budget is None else (budget,)
    return f"KL {decimals(point.kl, *limits, digits=4)}, top-1 {point.top1 or 0.0:.1%}"


def explain(changes: Sequence[AdviceChange]) -> str:
    """Why groups are changed alike: their peak, and their estimated cost before and after; nothing for none."""
    if not changes:
        return ""
    prices = [change.price_before for change in changes if change.price_before is not None]
    before = f"{sum(prices):.2g}" if len(prices) == len(changes) else "no finite price"
    peaks = [change.amax for change in changes if change.amax is not None]
    several = "" if len(changes) == 1 else f"{len(changes):,} groups, "
    peak = f"{several}peak {max(peaks):,.4g}; " if peaks else several.replace(",", ";")
    after = sum(change.price_after or 0.0 for change in changes)
    return f"{changes[0].title}: {peak}estimated KL {before} → {after:.2g}"


def targets_of(groups: Sequence[Group], changes: Mapping[str, AdviceChange], info: ModelInfo) -> list[Target]:
    """As few names and patterns as match these groups and nothing else; what is changed alike, together."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        change = changes.get(group.name)
        alike.setdefault(change.title if change else "", []).append(group)
    among = {module.name for module in info.modules} | {member for group in groups for member in group.members}
    found = []
    for some in alike.values():
        owner = {member: group.name for group in some for member in group.members}
        for pattern in exact_patterns(list(owner), among, lambda name: engine_name(name, info.model_type)):
            names = dict.fromkeys(owner[name] for name in pattern.names)
            reason = explain([changes[name] for name in names if name in changes])
            found.append(Target(names=(pattern.target,), reason=reason))
    return found
