"""QA401 to QA407: whether the recipe reaches the modules that it means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from quantaudit.card.text import counted
from quantaudit.common.findings import Hit, rule
from quantaudit.common.outcome import GateSeverity
from quantaudit.gate.rules.phrases import either, some

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence
    from quantaudit.recipe.unsimulated import Unsimulated


@rule(
    "QA401",
    "The recipe quantizes nothing",
    severity="error",
    why="`oneshot` succeeds and saves the model unmodified.",
    remedy="Give a `scheme` or `config_groups` with weights or input_activations, and targets that match Linears.",
)
def quantizes_nothing(evidence: Evidence) -> Iterator[Hit]:
    """No module ends up with a scheme, and no modifier quantizes a cache or attention, or prunes."""
    if evidence.resolution.schemes or any(map(_changes_model, evidence.resolution.unsimulated)):
        return
    modifiers = evidence.recipe.modifiers
    unset = [row for row in modifiers if getattr(row.modifier, "resolved_config", None) and not _scheme(row.modifier)]
    emptied = evidence.resolution.emptied
    if emptied:
        cause = " (a later modifier that names no scheme takes them away)"
    else:
        cause = " (no `scheme` and no `config_groups` are given)" if unset else ""
    yield Hit(
        message=f"none of the {evidence.linears:,} Linears is quantized{cause}",
        keys=(unset or modifiers)[0].keys,
        value=0.0,
    )


NOT_ALONE = frozenset(
    {
        "GPTQModifier",
        "AutoRoundModifier",
        "AWQModifier",
        "SmoothQuantModifier",
        "LogarithmicEqualizationModifier",
        "SpinQuantModifier",
        "QuIPModifier",
    }
)
"""Modifiers that quantize nothing where no module has a scheme."""


def _changes_model(change: Unsimulated) -> bool:
    """Whether something that is not simulated leaves quantized or pruned parts even where no module has a scheme."""
    part_of_config = len(change.keys) > 3
    return part_of_config or change.modifier not in NOT_ALONE


def _scheme(modifier: Any) -> bool:
    return modifier.scheme is not None or bool(modifier.config_groups)


@rule(
    "QA402",
    "A target has no effect",
    severity="error",
    why="What it was meant to quantize stays unquantized, or gets another target's scheme.",
    remedy="Name a module, a class such as `Linear`, or `re:` and a regular expression that matches from the start.",
)
def idle_targets(evidence: Evidence) -> Iterator[Hit]:
    """A target matches nothing, only modules that cannot be quantized, or only what other targets claim first."""
    texts = {
        "nothing": "matches no module",
        "container": "matches {} that hold Linears, not the Linears themselves",
        "not quantizable": "matches {}, none of them a Linear or an embedding",
        "overruled": "matches {}, all of which other targets claim first",
    }
    for pattern in evidence.resolution.unmatched:
        if pattern.field == "targets":
            yield Hit(
                message=f"target `{pattern.text}` " + texts[pattern.effect].format(counted(pattern.modules, "module")),
                keys=pattern.keys,
                module=pattern.text,
                remedy=f"Did you mean {either(pattern.suggestions)}?" if pattern.suggestions else None,
                severity="warning" if pattern.effect == "overruled" else None,
            )


@rule(
    "QA403",
    "An ignore keeps nothing out",
    severity="warning",
    why="What it was meant to leave alone is quantized. A name must be exact, and does not cover what lies below it; "
    "a regular expression matches from the start of the full name.",
    remedy="Correct the pattern, or remove it.",
)
def idle_ignores(evidence: Evidence) -> Iterator[Hit]:
    """An ignore matches nothing, only containers of Linears (an error), or only what was not targeted (information)."""
    texts = {
        "nothing": "matches no module",
        "container": "matches {} that hold Linears, which are quantized all the same",
        "not quantizable": "matches {}, which would not be quantized anyway",
        "not targeted": "matches {}, which no target selects or other entries keep out",
    }
    grave: dict[str, GateSeverity] = {"container": "error", "nothing": "warning"}
    for pattern in evidence.resolution.unmatched:
        if pattern.field == "ignore":
            yield Hit(
                message=f"ignore `{pattern.text}` " + texts[pattern.effect].format(counted(pattern.modules, "module")),
                keys=pattern.keys,
                module=pattern.text,
                severity=grave.get(pattern.effect, "info"),
                remedy=f"Did you mean {either(pattern.suggestions)}?" if pattern.suggestions else None,
            )


@rule(
    "QA404",
    "A key is not read",
    severity="warning",
    why="llm-compressor reads `*_stage`, `*_modifiers` and modifiers; next to `config_groups` or a mapping of schemes, "
    "a modifier's own `targets` are not read either.",
    remedy="Move it to where it is read, or remove it.",
)
def unread_keys(evidence: Evidence) -> Iterator[Hit]:
    """Keys that llm-compressor passes over without a word."""
    for keys in evidence.recipe.passed_over:
        # No modifier is in it, or reading would have failed: it may well hold anchors, or notes.
        yield Hit(message=f"key `{keys[-1]}` is passed over by llm-compressor", keys=keys, severity="info")
    for parsed in evidence.recipe.modifiers:
        modifier = parsed.modifier
        elsewhere = bool(getattr(modifier, "config_groups", None)) or isinstance(
            getattr(modifier, "scheme", None), dict
        )
        if elsewhere and "targets" in modifier.model_fields_set and modifier.targets != _all_targets(modifier):
            yield Hit(
                message="`targets` of the modifier are not read: the targets in its groups count",
                keys=(*parsed.keys, "targets"),
            )


def _all_targets(modifier: Any) -> list[str]:
    return [target for scheme in modifier.resolved_config.config_groups.values() for target in scheme.targets]


@rule(
    "QA405",
    "The alphabet decides between two targets",
    severity="warning",
    why="Where several regular expressions match a module, compressed_tensors takes the alphabetically first one, not "
    "the first or the most specific one of the recipe.",
    remedy="Make the expressions exclude each other, such as `re:.*(?<!down)_proj$`.",
)
def contested(evidence: Evidence) -> Iterator[Hit]:
    """Several targets of one kind match a module and ask for different schemes."""
    for overlap in evidence.resolution.overlaps:
        yield Hit(
            message=f"`{overlap.chosen}` wins over {some(overlap.others)} at "
            f"{counted(len(overlap.modules), 'module')}: {some(overlap.modules)}",
            keys=evidence.recipe.positions.find(evidence.recipe.modifiers[overlap.modifier].keys, overlap.chosen),
            module=overlap.modules[0],
            value=float(len(overlap.modules)),
        )


@rule(
    "QA406",
    "Two groups have the same target",
    severity="error",
    why="The later group wins; the scheme of the earlier one is lost without a word.",
    remedy="Give each target once; use regular expressions for what differs from a class.",
)
def repeated_targets(evidence: Evidence) -> Iterator[Hit]:
    """The very same target in two `config_groups`, or under two schemes."""
    for parsed in evidence.recipe.modifiers:
        config = getattr(parsed.modifier, "resolved_config", None)
        if config is not None:
            targets = Counter(target for scheme in config.config_groups.values() for target in set(scheme.targets))
            for target in (target for target, times in targets.items() if times > 1):
                groups = [name for name, scheme in config.config_groups.items() if target in scheme.targets]
                yield Hit(
                    message=f"target `{target}` is in {some(groups)}: `{groups[-1]}` counts",
                    keys=evidence.recipe.positions.find((*parsed.keys, "config_groups", groups[-1]), target),
                    module=target,
                )


@rule(
    "QA407",
    "Modules are quantized twice",
    severity="error",
    why="Of two modifiers that target a module the later one's scheme counts, if it has none at all: weights are "
    "calibrated under a scheme that they were not meant for, or stay unquantized.",
    remedy="Let each module be targeted by one modifier: add it to the `ignore` of the others.",
)
def requantized(evidence: Evidence) -> Iterator[Hit]:
    """Several modifiers of the recipe target the same modules; the later of them may have no scheme for them."""
    modules = list(evidence.resolution.requantized)
    if modules:
        origin = evidence.resolution.origins.get(modules[0])
        later = evidence.recipe.modifiers[origin.modifier if origin else -1]
        yield Hit(
            message=f"two modifiers quantize {counted(len(modules), 'module')}: {some(modules)}",
            keys=later.keys,
            module=modules[0],
            value=float(len(modules)),
        )
    emptied = [name for name in evidence.resolution.emptied if name not in evidence.resolution.schemes]
    if emptied:
        yield Hit(
            message=f"{counted(len(emptied), 'module')} lose the scheme that an earlier modifier gave them to one that "
            f"targets them and names none: {some(emptied)}",
            module=emptied[0],
            value=float(len(emptied)),
            remedy="Put the modifier without a scheme first, or give it `targets` that match no Linear; GPTQ without "
            "any argument about modules takes what others gave.",
        )
