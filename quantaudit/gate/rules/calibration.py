"""QA411 to QA419 and QA428, but for transforms: whether what the recipe asks for can be calibrated, run and judged."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING

from quantaudit.card.text import counted
from quantaudit.common.choices import group_size_that_divides
from quantaudit.common.findings import Hit, rule
from quantaudit.gate.rules.phrases import some

if TYPE_CHECKING:
    from quantaudit.gate.evidence import Evidence


@rule(
    "QA411",
    "Static input scales need calibration data",
    severity="info",
    why='The pipeline is an argument of `oneshot`, not of the recipe: with `pipeline="datafree"` such a recipe saves '
    "uninitialized scales, and only warns.",
    remedy="Run `oneshot` with a dataset like the text that the model is meant for.",
)
def needs_calibration(evidence: Evidence) -> Iterator[Hit]:
    """The recipe fixes input ranges at calibration."""
    static = sum(scheme.static for scheme in evidence.schemes.values())
    if static:
        yield Hit(message=f"{counted(static, 'module')} with static input scales", value=float(static))


@rule(
    "QA412",
    "An observer depends on the order of calibration samples",
    severity="warning",
    why="`minmax` is a moving average over batches with a constant of 0.01, seeded by the first batch, which at 32 "
    "batches still weighs 73 %: another order gives other scales, and peaks are clipped.",
    remedy="Use `observer: static_minmax`, the extreme over all batches; or keep the order fixed and simulate.",
)
def order_dependent(evidence: Evidence) -> Iterator[Hit]:
    """Static inputs are observed by a moving average, by default or by name; with the factor by which scales vary."""
    groups = [
        group
        for group in evidence.assignments
        if any(scheme.observer_in_recipe == "minmax" for scheme in group.quantized)
    ]
    if not groups:
        return
    keys = {(group.name, group.inputs) for group in groups}
    scales: dict[str, dict[str, float]] = {}
    spreads: dict[str, float] = {}
    for row in evidence.card.scales:
        if (row.group, row.scheme) in keys and row.scale:
            scales.setdefault(row.group, {})[row.observer] = row.scale
            if row.observer == "minmax" and row.order_spread is not None:
                spreads[row.group] = row.order_spread
    ratios = {
        group: observed["minmax"] / observed["absolute_maximum"]
        for group, observed in scales.items()
        if {"minmax", "absolute_maximum"} <= observed.keys()
    }
    measured = "" if spreads or ratios else "; this card does not hold its scales"
    if spreads:
        # Not above: rules are also read for their texts, without torch.
        from quantaudit.quant.observers import ORDERS

        worst = max(spreads, key=lambda group: spreads[group])
        measured += (
            f"; over {ORDERS} orders of this card's samples the scale of `{worst}` varies by a factor of "
            f"{spreads[worst]:.3g}, in the median group by {median(spreads.values()):.3g}"
        )
    if ratios:
        least = min(ratios, key=lambda group: ratios[group])
        measured += (
            f"; in the card's own order scales are {ratios[least]:.2f} (`{least}`) to {max(ratios.values()):.2f} times "
            "those of the absolute maximum"
        )
    first = next(
        (parsed for parsed in evidence.recipe.modifiers if getattr(parsed.modifier, "resolved_config", None)), None
    )
    yield Hit(
        message=f"inputs of {counted(len(groups), 'fused group')} are observed by `minmax`{measured}",
        module=groups[0].name,
        keys=evidence.recipe.positions.find(first.keys, "minmax") if first else None,
        value=max(spreads.values(), default=None),
    )


@rule(
    "QA413",
    "The group size does not divide a weight",
    severity="error",
    why="Kernels need in_features to be a multiple of the group size; `oneshot` refuses such a recipe.",
    remedy="Add these modules to `ignore`, or choose another group size.",
)
def indivisible(evidence: Evidence) -> Iterator[Hit]:
    """Weights in groups whose in_features is no multiple of the group size; llm-compressor's own condition."""
    sizes = {
        name: (evidence.shapes[name][-1], scheme.group_size)
        for name, scheme in evidence.schemes.items()
        if scheme.group_size and name in evidence.shapes and evidence.shapes[name][-1] % scheme.group_size
    }
    short = {name: pair for name, pair in sizes.items() if pair[0] < pair[1]}
    split = {name: pair for name, pair in sizes.items() if name not in short}
    bypass = any(getattr(parsed.modifier, "bypass_divisibility_checks", False) for parsed in evidence.recipe.modifiers)
    for rows, text in ((split, "with in_features that are no multiple of"), (short, "with fewer in_features than")):
        if rows:
            name, (columns, size) = next(iter(rows.items()))
            fitting = group_size_that_divides([evidence.shapes[name][-1] for name in _grouped(evidence)])
            yield Hit(
                message=f"{counted(len(rows), 'module')} {text} the group size: `{name}` has {columns}, of {size}",
                module=name,
                remedy=None
                if fitting is None
                else f"Choose group_size: {fitting}, which divides all of them, or add these modules to `ignore`.",
                value=float(columns),
                threshold=float(size),
                severity="warning" if bypass or rows is short else None,
            )


def _grouped(evidence: Evidence) -> list[str]:
    """Modules whose weights are quantized in groups."""
    return [name for name, scheme in evidence.schemes.items() if scheme.group_size and name in evidence.shapes]


@rule(
    "QA414",
    "Inputs are quantized and weights are not",
    severity="warning",
    why="No integer kernel multiplies quantized inputs by unquantized weights: accuracy is lost and nothing is gained.",
    remedy="Give the group `weights` as well, or leave its inputs alone.",
)
def inputs_alone(evidence: Evidence) -> Iterator[Hit]:
    """A scheme with input_activations and without weights."""
    modules = [name for name, scheme in evidence.schemes.items() if scheme.inputs and not scheme.weights]
    if modules:
        yield Hit(
            message=f"{counted(len(modules), 'module')} with quantized inputs and unquantized weights: {some(modules)}",
            module=modules[0],
            value=float(len(modules)),
        )


@rule(
    "QA417",
    "Part of the recipe cannot be simulated",
    severity="inconclusive",
    why="Whatever was measured or estimated here leaves it out, so that nothing can be concluded about the whole.",
    remedy="Run the recipe and compare: `quantaudit verify`.",
)
def beyond_simulation(evidence: Evidence) -> Iterator[Hit]:
    """GPTQ, AWQ, AutoRound, rotations, late SmoothQuant, pruning, cache, attention, outputs, embeddings, observers."""
    reasons = {change.reason for change in evidence.resolution.unsimulated}
    for change in evidence.resolution.unsimulated:
        yield Hit(message=f"{change.modifier}: {change.reason}", keys=change.keys)
    for reason in evidence.score.left_out:
        if reason not in reasons:
            yield Hit(message=f"left out of the simulation: {reason}")


@rule(
    "QA418",
    "Weights that no recipe reaches",
    severity="info",
    why="llm-compressor quantizes Linears and embeddings; stacked experts of an unknown layout, and transformers' "
    "Conv1D, stay unquantized without a word.",
    remedy="Expect these modules unquantized, or convert the checkpoint to a layout of Linears.",
)
def out_of_reach(evidence: Evidence) -> Iterator[Hit]:
    """Modules with weight matrices that are neither Linear nor Embedding."""
    stacked = [row.module for row in evidence.card.coverage.unmeasured if row.weights and row.cause == "not_linear"]
    transposed = [module.name for module in evidence.card.model.modules if module.classes[:2] == ["Conv1D", "Module"]]
    modules = stacked + transposed
    if modules:
        yield Hit(
            message=f"{counted(len(modules), 'module')} with weights that are no Linears: {some(modules)}",
            module=modules[0],
            value=float(len(modules)),
        )


@rule(
    "QA428",
    "llm-compressor splits these experts wrongly",
    severity="inconclusive",
    why="`oneshot` makes Linears of stacked experts before it quantizes anything, whatever the recipe ignores. Those "
    "that it makes of these return other outputs for random tokens, or it fails to make any.",
    remedy="Do not ship what `oneshot` saves of this model before `quantaudit verify` has passed it.",
)
def wrong_split(evidence: Evidence) -> Iterator[Hit]:
    """Stacked experts of which llm-compressor makes Linears that compute something else."""
    modules = evidence.card.model.split_wrongly
    if modules:
        layers = counted(len(modules), "layer")
        yield Hit(
            message=f"experts of {layers} that `oneshot` replaces by others, or cannot: {some(modules)}",
            module=modules[0],
            value=float(len(modules)),
        )


MASKLESS = {"mistral": "Mistral", "mixtral": "Mixtral", "phi3": "Phi-3", "qwen3_moe": "Qwen3-MoE"}
"""Model types whose forward chooses its mask function by `sliding_window`, which does not survive tracing."""


@rule(
    "QA419",
    "Calibration may lose the causal mask",
    severity="info",
    why="llm-compressor 0.14's sequential pipeline, its default for static scales and GPTQ, traces this kind of model "
    "without its causal mask (transformers 5.17): tokens see those behind them, and scales are of other activations.",
    remedy='Run `oneshot` with pipeline="basic"; `quantaudit verify` does, and reports a lost mask as QA609.',
)
def maskless(evidence: Evidence) -> Iterator[Hit]:
    """The recipe needs calibration, and the model is one whose mask the default pipeline loses."""
    name = MASKLESS.get(evidence.card.model.model_type)
    calibrated = any(scheme.static for scheme in evidence.schemes.values()) or evidence.resolution.unsimulated
    if name is not None and calibrated:
        yield Hit(message=f"a {name} model, which the sequential pipeline calibrates without a causal mask")
