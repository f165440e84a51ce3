"""What a recipe does to the whole model: measured for this very recipe, or estimated from prices, or unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from pydantic import ValidationError

from quantaudit.errors import FormatError
from quantaudit.gate.group_assignment import GroupAssignment
from quantaudit.gate.report import Score
from quantaudit.provenance import explain
from quantaudit.quant.observers import LLM_COMPRESSOR_NAMES
from quantaudit.recipe.digest import scheme_digest
from quantaudit.recipe.resolve import Resolution
from quantaudit.simulate.records import RecipeRow, SchemeInfo, Simulation
from quantaudit.simulate.sensitivity.recipe_estimate import RecipeEstimate, estimate_of

_OURS = {ours: theirs for theirs, ours in LLM_COMPRESSOR_NAMES.items()}


def score(resolution: Resolution, assignments: Sequence[GroupAssignment], simulations: Sequence[Simulation]) -> Score:
    """The first row that was measured on the same assignment of schemes; else an estimate from prices; else why not."""
    rows = (row for simulation in simulations for row in _rows(simulation, resolution.digest))
    result = next(map(_measured, rows), None)
    result = result or estimate(assignments, resolution.smoothed, estimate_of(simulations))
    left_out = list(dict.fromkeys([*(change.reason for change in resolution.unsimulated), *result.left_out]))
    notes = [result.note, *(f"nearly: {text}" for text in result.approximate), *(f"but {text}" for text in left_out)]
    return result.model_copy(update={"note": "; ".join(notes), "left_out": left_out})


def _rows(simulation: Simulation, digest: str) -> Iterator[RecipeRow]:
    uniform = uniform_digests(simulation)
    yield from (row for row in simulation.recipes if (row.digest or uniform.get(row.name)) == digest)


def uniform_digests(simulation: Simulation) -> dict[str, str]:
    """Digests of the rows that give every group inside the decoder layers one scheme and are named as that scheme."""
    return {
        info.name: scheme_digest(
            {
                member: scheme
                for row in simulation.groups
                if row.scheme == info.name and row.layer is not None
                for member in row.members
            }
        )
        for info in simulation.schemes
        for scheme in [info_scheme(info)]
    }


def info_scheme(info: SchemeInfo) -> QuantizationScheme:
    """A scheme of a card in compressed_tensors' terms. Raises FormatError.

    Its observer, where it has one, is the one that ranges came from; one that no recipe can name keeps its own name.
    """
    inputs = info.input_activations
    if inputs is not None and info.observer is not None:
        inputs = {**inputs, "observer": _OURS.get(info.observer, info.observer)}
    try:
        return QuantizationScheme(targets=[], weights=_args(info.weights), input_activations=_args(inputs))
    except ValidationError as error:
        raise FormatError(f"scheme {info.name} of the simulation is not one: {explain(error)}") from error


def _args(data: Mapping[str, Any] | None) -> QuantizationArgs | None:
    return None if data is None else QuantizationArgs.model_validate(data)


def _measured(row: RecipeRow) -> Score:
    """The score of a simulated recipe."""
    return Score(
        source="measured",
        kl=row.kl,
        kl_stderr=row.kl_stderr,
        top1=row.top1,
        tokens=row.tokens,
        nonfinite=row.nonfinite,
        approximate=row.approximate,
        left_out=row.unsimulated,
        note=f"measured on {row.tokens:,} evaluation tokens ({row.title})",
    )


def estimate(assignments: Sequence[GroupAssignment], smoothed: AbstractSet[str], estimated: RecipeEstimate) -> Score:
    """The KL that the prices of the groups sum to; each must be of the very scheme that the recipe gives the group.

    smoothed: modules that are changed before they are quantized, so that their groups' prices are of something else.
    estimated: from sums of prices to KL, in nats per token.
    """
    if not assignments:
        return Score(source="measured", kl=0.0, top1=1.0, note="nothing is quantized")
    prices = {
        assignment.name: assignment.row.price
        if assignment.row is not None and smoothed.isdisjoint(assignment.members)
        else None
        for assignment in assignments
    }
    missing = [name for name, price in prices.items() if price is None]
    if missing:
        why = "no price under this recipe's smoothing" if smoothed else "no price under this recipe's scheme"
        return Score(
            source="unknown", note=f"{len(missing)} of {len(prices)} fused groups have {why}, such as `{missing[0]}`"
        )
    return Score(
        source="estimated",
        kl=estimated.kl(sum(price for price in prices.values() if price is not None)),
        note=f"estimated from the prices of {len(prices)} fused groups",
    )
