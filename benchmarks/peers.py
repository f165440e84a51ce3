"""Advice under a budget of bits next to ModelOpt's `auto_quantize`: same formats, same data, no more bytes.

    pip install --no-deps --target FOLDER nvidia-modelopt==0.47.0 "pulp<4" omegaconf "antlr4-python3-runtime==4.9.*"
    python benchmarks/peers.py [MODEL] --modelopt FOLDER [--budgets 5,6,8.5] [--truth RESULT.json] [--out RESULT.json]

Both sides take ranges from the same calibration samples, score on the same evaluation tokens, and choose one of the
same formats, or none, for every fused group of Linears. ModelOpt scores by its default, squared products of gradients
of the loss and changes of outputs, and solves an integer program in which a format counts the bytes that it has here.
This project then chooses within the bytes of ModelOpt's choice, and both are simulated on evaluation tokens that
neither side has scored on. Exits with 1 where the KL of this project's choice is more than 2 % above that of
ModelOpt's, and with 2 where ModelOpt is missing.

The formats are those of both that run on a CPU: ModelOpt's NVFP4 and MXFP4 need its CUDA extension. It runs a copy of
the model in float32. With `--truth`, a result of brute_force.py, the scores of both sides for static INT8 are ranked
against the KL of every group quantized alone; ModelOpt caps them at those of formats of fewer bits, so that they are a
ranking of their own only with `--formats INT8_DEFAULT_CFG`. Seconds are of the processor, in child processes too:
ModelOpt's solver is one.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from brute_force import Case, Scores, compare
from torch import Tensor, nn

from quantaudit.corpus.tokens import TokenizedSample
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile, load_profile
from quantaudit.model.sites import Group
from quantaudit.pipeline.passes import measure_inputs, simulate_inputs
from quantaudit.pipeline.prepare import AuditInputs, prepare, shapes_in_blocks
from quantaudit.quant.schemes import INT8_STATIC, Scheme, find_scheme
from quantaudit.quant.standard import ChosenSchemes, Shapes, fit
from quantaudit.quant.weight_bytes import weight_bytes
from quantaudit.settings import Settings
from quantaudit.simulate import evaluation
from quantaudit.simulate.allocation import UNQUANTIZED, Limit, Menu, Point, menu_of
from quantaudit.simulate.allocation.plain import solve_plainly
from quantaudit.simulate.allocation.solve import point_of
from quantaudit.simulate.experiment import Experiment, InputRanges
from quantaudit.simulate.records import Simulation
from quantaudit.simulate.scheme_info import scheme_info

WORSE = 1.02
"""By what factor the KL of this project's choice may be above that of ModelOpt's."""
FORMATS = {
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": ("int4_weights_group_128", (4, None)),
    "FP8_DEFAULT_CFG": ("fp8_e4m3_static_per_tensor", ((4, 3), (4, 3))),
    "INT8_DEFAULT_CFG": ("int8_static_per_tensor", (8, 8)),
}
"""By ModelOpt's name: the scheme here, and ModelOpt's `num_bits` of weights and of inputs, which tell formats apart."""
MISSING = 2
STEPS = ("ranges", "scores", "choices")
OWN, PEER = "this project", "ModelOpt"

Schemes = Mapping[str, str | None]
"""The name of its scheme by fused group, UNQUANTIZED (None) where it is left alone."""


class Stopwatch:
    """Seconds that the processor works, in all threads and child processes, by step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self._since = sum(os.times()[:4])

    def lap(self, step: str) -> None:
        """Count everything since the last lap as this step's."""
        now = sum(os.times()[:4])
        self.seconds[step] += now - self._since
        self._since = now


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One model, its formats and its text. schemes: by ModelOpt's name of the format, in group sizes that fit.

    scored: samples that both sides score on; held_out: those that choices are simulated on.
    """

    inputs: AuditInputs
    schemes: Mapping[str, Scheme]
    scored: Sequence[TokenizedSample]
    held_out: Sequence[TokenizedSample]

    @property
    def groups(self) -> list[Group]:
        """Fused groups in the decoder blocks."""
        return [group for group in self.inputs.loaded.architecture.groups if group.layer is not None]

    @property
    def shapes(self) -> Shapes:
        """[out, in] of their Linears."""
        return shapes_in_blocks(self.inputs.loaded.model, self.inputs.loaded.architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """What `auto_quantize` finds. choices: by budget. ranking: its scores of static INT8 by fused group."""

    choices: Mapping[float, Schemes]
    ranking: Scores
    seconds: Mapping[str, float]


def main(
    model: Annotated[str, typer.Argument()] = "demo",
    modelopt: Annotated[Path | None, typer.Option(help="folder that ModelOpt is installed in")] = None,
    budgets: Annotated[str, typer.Option(help="bits for each quantizable weight, scales included")] = "5,6,8.5",
    formats: Annotated[str, typer.Option(help="by ModelOpt's names")] = ",".join(FORMATS),
    evaluation_tokens: Annotated[int, typer.Option(help="that both sides score on")] = 1024,
    held_out_tokens: Annotated[int, typer.Option(help="that choices are simulated on")] = 2048,
    samples: int | None = 96,
    corpus: str = "builtin",
    profile: Annotated[Path | None, typer.Option(help="measured before, so that it takes no time here")] = None,
    truth: Annotated[Path | None, typer.Option(help="a result of brute_force.py")] = None,
    out: Path | None = None,
) -> None:
    """Let both sides choose, simulate both choices, compare."""
    quantization = import_modelopt(modelopt)
    settings = Settings.of(model=model, corpus=corpus, samples=samples, evaluation_tokens=evaluation_tokens)
    subject = prepare_subject(settings, formats.split(","), held_out_tokens)
    searched = auto_quantize(quantization, subject, [float(bits) for bits in budgets.split(",")])
    watch = Stopwatch()
    measured = load_profile(profile) if profile else measure_inputs(subject.inputs)
    watch.lap("ranges")
    simulation = simulate_inputs(subject.inputs, measured)
    watch.lap("scores")
    menu = menu_of(simulation, subject.inputs.loaded.info, unquantized=True)
    points = {(bits, PEER): point_with(menu, schemes) for bits, schemes in searched.choices.items()}
    points |= {(bits, OWN): within(menu, points[bits, PEER]) for bits in searched.choices}
    watch.lap("choices")
    kls = simulated(subject, measured, points)
    info = subject.inputs.loaded.info
    result = {
        "model": info.name,
        "fingerprint": info.fingerprint,
        "tokens": {
            "scored": sum(len(sample.ids) for sample in subject.scored),
            "held out": sum(len(sample.ids) for sample in subject.held_out),
        },
        "formats": {name: scheme.name for name, scheme in subject.schemes.items()},
        "budgets": [compared(bits, points, kls) for bits in searched.choices],
        "seconds": {OWN: watch.seconds, PEER: searched.seconds},
        "rankings": rankings({OWN: prices(simulation), PEER: searched.ranking}, truth, info.fingerprint),
        "choices": {f"{bits:g}, {side}": dict(point.schemes) for (bits, side), point in points.items()},
    }
    result["missed"] = missed(result)
    show(result)
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    raise typer.Exit(1 if result["missed"] else 0)


def import_modelopt(folder: Path | None) -> Any:
    """`modelopt.torch.quantization`, from a folder that is searched last. Exits with MISSING where there is none."""
    if folder is not None:
        sys.path.append(str(folder))
    try:
        with redirect_stdout(sys.stderr):
            return importlib.import_module("modelopt.torch.quantization")
    except ImportError as error:
        print(f"no ModelOpt ({error}): install it as {Path(__file__).name} says, and give --modelopt", file=sys.stderr)
        raise typer.Exit(MISSING) from error


def prepare_subject(settings: Settings, formats: Sequence[str], held_out_tokens: int) -> Subject:
    """Load the model; fit the formats to it; set tokens apart that nothing scores on."""
    inputs = prepare(settings)
    shapes = shapes_in_blocks(inputs.loaded.model, inputs.loaded.architecture)
    schemes = {name: fit(find_scheme(FORMATS[name][0]), shapes)[0] for name in formats}
    alone = frozenset(scheme.name for scheme in schemes.values() if scheme.name != INT8_STATIC.name)
    inputs = replace(inputs, chosen=ChosenSchemes(schemes=tuple(schemes.values()), price_alone=alone, left_out=()))
    samples, tokenizer = inputs.corpus.samples, inputs.loaded.tokenizer
    scored = evaluation.select(samples, settings.simulate.evaluation_tokens, tokenizer)
    taken = {sample.index for sample in scored}
    rest = [sample for sample in samples if sample.index not in taken]
    held_out = evaluation.select(rest, held_out_tokens, tokenizer)
    return Subject(inputs=inputs, schemes=schemes, scored=scored, held_out=held_out)


def auto_quantize(quantization: Any, subject: Subject, budgets: Sequence[float]) -> Searched:
    """Calibrate and score once, solve for every budget."""
    # transformers refuses `model.float()` where weights were read from a quantized file, whatever they are now.
    model = nn.Module.float(copy.deepcopy(subject.inputs.loaded.model))
    calibration = [sample for sample in subject.inputs.corpus.samples if sample.split == "calibration"]
    others = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in subject.shapes
    ]
    watch = Stopwatch()

    def calibrate(model: nn.Module, batch: tuple[TokenizedSample, Any]) -> Any:
        return model(input_ids=token_ids(batch[0], subject))

    def score(model: nn.Module, batch: tuple[Any, TokenizedSample]) -> None:
        watch.lap("scores" if watch.seconds["scores"] else "ranges")
        ids = token_ids(batch[1], subject)
        # A sum over tokens, not the mean of a sample: all count alike, as in batches of one length.
        (model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)).backward()
        watch.lap("scores")

    with redirect_stdout(sys.stderr):
        _, state = quantization.auto_quantize(
            model,
            constraints={"effective_bits": budgets[0], "cost": {"excluded_module_name_patterns": others}},
            quantization_formats=[
                format_config(quantization, name, scheme, subject.shapes) for name, scheme in subject.schemes.items()
            ],
            data_loader=list(zip_longest(calibration, subject.scored)),
            forward_step=calibrate,
            forward_backward_step=score,
            disabled_layers=others,
            num_calib_steps=len(calibration),
            num_score_steps=len(subject.scored),
        )
        configs = {bits: quantization.get_auto_quantize_config(state, {"effective_bits": bits}) for bits in budgets}
    watch.lap("choices")
    return Searched(
        choices={bits: chosen_schemes(config, subject) for bits, config in configs.items()},
        ranking=int8_scores(state, subject),
        seconds=watch.seconds,
    )


def token_ids(sample: TokenizedSample, subject: Subject) -> Tensor:
    """int64 [1, tokens], on the model's device."""
    return torch.as_tensor(sample.ids, device=subject.inputs.loaded.device)[None]


def format_config(quantization: Any, name: str, scheme: Scheme, shapes: Shapes) -> dict[str, Any]:
    """ModelOpt's format in the group size and at the bytes that it has here."""
    config: dict[str, Any] = copy.deepcopy(getattr(quantization, name))
    info = scheme_info(scheme)
    sizes = [
        weight_bytes(shape, info.weights or {}, activations=info.input_activations is not None)
        for shape in shapes.values()
    ]
    config["effective_bits"] = 8 * sum(sizes) / sum(rows * columns for rows, columns in shapes.values())
    for entry in config["quant_cfg"]:
        if blocks := (entry.get("cfg") or {}).get("block_sizes"):
            blocks[-1] = scheme.weights.group_size if scheme.weights else blocks[-1]
    return config


def chosen_schemes(config: Mapping[str, Any], subject: Subject) -> dict[str, str | None]:
    """The schemes that a config of ModelOpt's gives to fused groups. Raises FormatError where it splits one."""
    entries = {entry["quantizer_name"]: entry for entry in config["quant_cfg"]}
    names: dict[Any, str | None] = {FORMATS[name][1]: scheme.name for name, scheme in subject.schemes.items()}
    names[None, None] = UNQUANTIZED
    chosen: dict[str, str | None] = {}
    for group in subject.groups:
        found = {
            names[_bits(entries.get(f"{member}.weight_quantizer")), _bits(entries.get(f"{member}.input_quantizer"))]
            for member in group.members
        }
        if len(found) != 1:
            raise FormatError("ModelOpt gives Linears that run as one different formats", where=group.name)
        chosen[group.name] = found.pop()
    return chosen


def _bits(entry: Mapping[str, Any] | None) -> Any:
    """`num_bits` of a quantizer: a number, exponent and mantissa, or None where it is off."""
    if entry is None or not entry.get("enable", True):
        return None
    bits = entry["cfg"]["num_bits"]
    return tuple(bits) if isinstance(bits, list) else bits


def int8_scores(state: Mapping[str, Any], subject: Subject) -> Scores:
    """ModelOpt's scores of static INT8 by fused group; none where it is not among the formats."""
    owner = {member: group.name for group in subject.groups for member in group.members}
    scores: Scores = {}
    for place, scheme in enumerate(subject.schemes.values()):
        for row in state["candidate_stats"].values():
            if scheme.name == INT8_STATIC.name and row["module_names"][0] in owner:
                # A format that is given as a config is called by its place among them.
                (number,) = (i for i, name in enumerate(row["formats"]) if str(name).startswith(f"CUSTOM_{place}("))
                scores[owner[row["module_names"][0]]] = float(row["scores"][number])
    return scores


def prices(simulation: Simulation) -> Scores:
    """This project's prices of static INT8 by fused group."""
    rows = [row for row in simulation.groups if row.scheme == INT8_STATIC.name and row.layer is not None]
    return {row.group: row.price for row in rows if row.price is not None}


def point_with(menu: Menu, schemes: Schemes) -> Point:
    """A choice of ModelOpt's, in the bytes and prices of this project."""
    return point_of(menu, [unit.schemes.index(schemes[unit.groups[0]]) for unit in menu.units])


def within(menu: Menu, peer: Point) -> Point:
    """What `quantaudit advise` chooses in as many bytes."""
    return solve_plainly(menu, Limit(max_size=peer.size))[1]


def simulated(subject: Subject, measured: Profile, points: Mapping[tuple[float, str], Point]) -> Scores:
    """KL of each choice on the held-out tokens, nats per token, by `name_of`."""
    loaded, schemes = subject.inputs.loaded, list(subject.schemes.values())
    experiment = Experiment(
        model=loaded.model,
        architecture=loaded.architecture,
        samples=subject.held_out,
        schemes=schemes,
        ranges=InputRanges.measured(measured, schemes, loaded.architecture.groups),
    )
    case = Case(subject=subject.inputs, profile=measured, experiment=experiment.only(subject.groups))
    by_name = {scheme.name: scheme for scheme in schemes}
    plans = [
        case.mixed(
            name_of(*key), {group: by_name[name] for group, name in point.schemes.items() if name is not UNQUANTIZED}
        )
        for key, point in points.items()
    ]
    with subject.inputs.computed():
        return case.kls(plans)


def name_of(bits: float, side: str) -> str:
    """What a plan is called."""
    return f"{bits:g} bits, {side}"


def compared(bits: float, points: Mapping[tuple[float, str], Point], kls: Scores) -> dict[str, Any]:
    """One budget: bits and KL of both choices, their ratio, and how many fused groups differ."""
    own, peer = points[bits, OWN], points[bits, PEER]
    kl = {side: kls[name_of(bits, side)] for side in (OWN, PEER)}
    return {
        "budget": bits,
        "bits": {OWN: own.bits, PEER: peer.bits},
        "kl": kl,
        "estimated": {OWN: own.kl, PEER: peer.kl},
        "ratio": kl[OWN] / kl[PEER],
        "differ": sum(own.schemes[group] != scheme for group, scheme in peer.schemes.items()),
        "groups": len(peer.schemes),
    }


def rankings(scores: Mapping[str, Scores], truth: Path | None, fingerprint: str) -> dict[str, dict[str, float]]:
    """Scores of each side against brute force; empty without it. Raises FormatError for that of other weights."""
    if truth is None:
        return {}
    stored = json.loads(truth.read_text(encoding="utf-8"))
    if stored["fingerprint"] != fingerprint or stored["scheme"] != INT8_STATIC.name:
        raise FormatError("this truth is of other weights, or of another scheme", where=str(truth))
    return {side: compare(ranking, stored["kl"]) for side, ranking in scores.items() if ranking}


def missed(result: Mapping[str, Any]) -> list[str]:
    """What falls short, in words."""
    return [
        f"at {row['budget']:g} bits the KL is {row['ratio']:.3f} times that of ModelOpt's choice, above {WORSE}"
        for row in result["budgets"]
        if not row["ratio"] <= WORSE
    ]


def show(result: Mapping[str, Any]) -> None:
    """The report as Markdown tables on stdout."""
    tokens = result["tokens"]
    print(f"{result['model']}: {tokens['scored']:,} tokens scored on, {tokens['held out']:,} held out")
    print(f"formats: {', '.join(result['formats'].values())}, unquantized\n")
    print(f"| budget | bits, {OWN} | {PEER} | KL, {OWN} | {PEER} | ratio | groups that differ |")
    print("|---|---|---|---|---|---|---|")
    for row in result["budgets"]:
        bits, kl = ([row[key][side] for side in (OWN, PEER)] for key in ("bits", "kl"))
        print(
            f"| {row['budget']:g} | {bits[0]:.3f} | {bits[1]:.3f} | {kl[0]:.4f} | {kl[1]:.4f} | {row['ratio']:.3f} "
            f"| {row['differ']} of {row['groups']} |"
        )
    print(f"\n| seconds of the processor | {' | '.join(STEPS)} | together |\n|---|{'---|' * (len(STEPS) + 1)}")
    for side, seconds in result["seconds"].items():
        cells = [*(seconds[step] for step in STEPS), sum(seconds.values())]
        print(f"| {side} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    for side, row in result["rankings"].items():
        masses = ", ".join(f"{row[f'mass_at_{k}']:.3f}" for k in (4, 8, 16))
        print(f"\n{side}, static INT8: KL mass at 4, 8, 16 groups {masses}, Spearman {row['spearman']:.3f}")
    print("\n" + ("\n".join(result["missed"]) or "no worse at any budget"))


if __name__ == "__main__":
    typer.run(main)
