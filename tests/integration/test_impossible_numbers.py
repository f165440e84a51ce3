"""What cannot be: cards, simulations, policies and profiles with one thing changed. None passes; their neighbors do."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from quantaudit import cli
from quantaudit.card.schema import dump_card
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError
from quantaudit.measure.profile import Profile, load_profile, save_profile
from tests.recipe_cards import card_of

RECIPE = resource_dir("recipes") / "w8a8_dynamic.yaml"
Json = dict[str, Any]
Change = Callable[[Json], Any]


def row(card: Json, name: str = "int8_dynamic_per_token") -> Json:
    found: Json = next(one for one in card["simulation"]["recipes"] if one["name"] == name)
    return found


def scored(**values: Any) -> Change:
    """The row that the recipe is judged by, with these values; its only domain says the same."""

    def change(card: Json) -> None:
        row(card).update(values)
        shared = {key: values[key] for key in ("kl", "top1", "tokens", "samples") if key in values}
        row(card)["domains"]["all"].update(shared)

    return change


def alone(**values: Any) -> Change:
    """The same, where the domains still say what was measured."""
    return lambda card: row(card).update(values)


def estimated(change: Change) -> Change:
    """Without the row, so that prices decide."""

    def both(card: Json) -> None:
        card["simulation"]["recipes"] = []
        change(card)

    return both


def first(path: str, **values: Any) -> Change:
    """The first row of a table, such as `simulation.groups`, with these values."""

    def change(card: Json) -> None:
        part: Any = card
        for key in path.split("."):
            part = part[key]
        (part[0] if isinstance(part, list) else part).update(values)

    return change


def magnitudes(**values: Any) -> Json:
    """A distribution of a few values up to a peak of 20."""
    return {"parts": 1, "first": 2, "zeros": 0, "below": 0, "counts": [3, 2, 1], **values}


def every(path: str, **values: Any) -> Change:
    """All rows of a table with these values."""

    def change(card: Json) -> None:
        part: Any = card
        for key in path.split("."):
            part = part[key]
        for one in part:
            one.update(values)

    return change


def twice(path: str) -> Change:
    def change(card: Json) -> None:
        part: Any = card
        for key in path.split("."):
            part = part[key]
        part.append(dict(part[0]))

    return change


def worst(change: Change) -> Change:
    """The first scheme's verdict with its worst groups, as a report names them, and then the change."""

    def change_both(card: Json) -> None:
        scheme = card["simulation"]["schemes"][0]["name"]
        rows = [one for one in card["simulation"]["groups"] if one["scheme"] == scheme and one["damage"]]
        total = sum(one["damage"] for one in rows)
        named = [
            {"group": one["group"], "damage": one["damage"], "share": one["damage"] / total, "amax": None,
             "zeroed_fraction": None, "explanation": ""}
            for one in sorted(rows, key=lambda one: -one["damage"])[:3]
        ]  # fmt: skip
        for one in named:
            one["amax"] = next(
                (site["amax"] for site in card["sites"] if site["name"] == f"{one['group']}.input"), None
            )
        numbers = {key: row(card, scheme)[key] for key in ("kl", "top1", "perplexity", "perplexity_base")}
        card["verdict"]["schemes"] = [
            {**VERDICT, "scheme": scheme, "status": "INCONCLUSIVE", **numbers, "worst_groups": named}
        ]
        change(card)

    return change_both


def raised(card: Json) -> None:
    named = {one["group"] for one in card["verdict"]["schemes"][0]["worst_groups"]}
    scheme = card["verdict"]["schemes"][0]["scheme"]
    rows = card["simulation"]["groups"]
    next(one for one in rows if one["scheme"] == scheme and one["damage"] and one["group"] not in named)["damage"] = (
        50.0
    )


def lowered(card: Json) -> None:
    verdict = card["verdict"]["schemes"][0]
    group = verdict["worst_groups"][0]["group"]
    rows = card["simulation"]["groups"]
    next(one for one in rows if (one["scheme"], one["group"]) == (verdict["scheme"], group))["damage"] = 1e-9


def shared(card: Json) -> None:
    card["verdict"]["schemes"][0]["worst_groups"][0]["share"] = 0.99


def residual(**values: Any) -> Change:
    return lambda card: next(one for one in card["sites"] if one["kind"] == "residual").update(values)


def domain_errors(**values: Any) -> Change:
    """The only domain of the row with another standard error than the row's."""
    return lambda card: row(card)["domains"]["all"].update(values)


def every_sample(card: Json) -> None:
    card["corpus"]["truncated"] = card["corpus"]["images"] = card["corpus"]["samples"]


def names_exchanged(card: Json) -> None:
    static, dynamic = card["simulation"]["schemes"]
    static["name"], dynamic["name"] = dynamic["name"], static["name"]


def scheme(**values: Any) -> Change:
    """The scheme of the recipe with these values."""
    return lambda card: card["simulation"]["schemes"][1].update(values)


def model(**values: Any) -> Change:
    return lambda card: card["model"].update(values)


def evaluation(**values: Any) -> Change:
    return lambda card: card["simulation"]["evaluation"].update(values)


def verdict(**values: Any) -> Change:
    """The first scheme's verdict, with its worst groups, with these values."""
    return worst(lambda card: card["verdict"]["schemes"][0].update(values))


def modules_of_one(card: Json) -> None:
    for module in card["model"]["modules"]:
        module["weight_shape"] = module["weight_shape"] and [1, 1]


def copies_listed(card: Json) -> None:
    """Three samples that repeat others, as a report says it."""
    card["corpus"].update(repeated=3, overlapping=0)
    texts = {"message": "3 repeat", "reason": "r", "remedy": "r"}
    card["findings"].append(
        {"code": "QA113", "severity": "info", "module": None, "value": 3.0, "threshold": 0.0, **texts}
    )


def added_scheme(name: str, title: str, size: int) -> Change:
    """One more scheme, of weights in groups."""
    weights = {"num_bits": 4, "strategy": "group", "group_size": size}
    row = {"name": name, "title": title, "weights": weights, "input_activations": None, "observer": None}
    return lambda card: card["simulation"]["schemes"].append(row)


CARDS: list[tuple[str, Change, int, str]] = [
    # what is changed, the change, exit code, what is said
    ("KL below zero", scored(kl=-0.001), 2, "kl"),
    ("KL as a word", scored(kl="0.001"), 2, "kl"),
    ("KL as a truth value", scored(kl=True), 2, "kl"),
    ("KL not known", scored(kl=None), 3, "KL"),
    ("KL beyond all doubles", scored(kl=1e400), 3, "KL"),
    ("KL within its error of the limit", scored(kl=0.14, kl_stderr=0.03), 3, "crosses 0.15"),
    ("KL of which the error is unknown", scored(kl_stderr=None), 3, "standard error"),
    ("error below zero", scored(kl_stderr=-1.0), 2, "kl_stderr"),
    ("error beyond all bounds", scored(kl_stderr=1e300), 3, "crosses"),
    ("error of nothing", scored(kl_stderr=0.0), 3, "standard error of 0"),
    ("top-1 missing", scored(top1=None), 3, "top-1"),
    ("top-1 above one", scored(top1=1.5), 2, "top1"),
    ("top-1 below zero", scored(top1=-0.1), 2, "top1"),
    ("top-1 next to its limit", scored(top1=0.799, top1_stderr=0.02), 1, "80%"),
    ("sixteen tokens", scored(tokens=16), 3, "64"),
    ("no tokens", scored(tokens=0), 3, "64"),
    ("tokens below zero", scored(tokens=-4096), 2, "tokens"),
    ("one sample", scored(samples=1), 3, "sample"),
    ("samples below zero", scored(samples=-3), 2, "samples"),
    ("KL that its domains do not have", alone(kl=0.01), 3, "domains"),
    ("top-1 that its domains do not have", alone(top1=0.93), 3, "domains"),
    ("tokens that its domains do not hold", alone(tokens=8192), 3, "domains"),
    ("samples that its domains do not hold", alone(samples=40), 3, "domains"),
    ("domains taken away", alone(domains={}), 3, "domains"),
    ("perplexity below one", scored(perplexity=0.2), 2, "perplexity"),
    ("prices below zero", estimated(first("simulation.groups", price=-1.0)), 2, "price"),
    ("prices missing", estimated(every("simulation.groups", price=None)), 3, "price"),
    ("damage below zero", first("simulation.groups", damage=-1.0), 2, "damage"),
    ("share zeroed above one", first("simulation.sites", zeroed_fraction=7.0), 2, "zeroed_fraction"),
    ("clip rate below zero", first("simulation.sites", clip_rate=-0.1), 2, "clip_rate"),
    ("scale below zero", first("scales", scale=-1.0), 2, "scale"),
    ("a group twice", twice("simulation.groups"), 2, "twice"),
    ("a recipe twice", twice("simulation.recipes"), 2, "twice"),
    ("a scheme twice", twice("simulation.schemes"), 2, "twice"),
    ("a site twice", twice("sites"), 2, "twice"),
    ("group of a scheme that is not there", first("simulation.groups", scheme="int3"), 2, "int3"),
    ("group of modules that are not there", first("simulation.groups", members=["model.nowhere"]), 2, "nowhere"),
    ("simulation of other weights", first("simulation", fingerprint="0" * 64), 2, "weights"),
    ("simulation of another text", first("simulation", corpus_sha256="0" * 64), 2, "corpus"),
    ("more evaluation tokens than text", first("simulation.evaluation", tokens=10**9), 2, "evaluation"),
    (
        "fewer evaluation tokens than were simulated",
        first("simulation.evaluation", tokens=4000),
        2,
        "none of its recipes",
    ),
    ("fewer samples than were simulated", first("simulation.evaluation", samples=["a"]), 2, "none of its recipes"),
    ("more overlapping than evaluated", first("simulation.evaluation", overlapping=10**6), 2, "overlapping"),
    ("more left out than there are", first("simulation.evaluation", left_out=10**6), 2, "left out"),
    ("more repeated than there are", first("corpus", repeated=10**6), 2, "repeated"),
    ("a perplexity before that another row does not have", scored(perplexity_base=1.5), 2, "perplexity_base"),
    ("a share zeroed that is not known", first("simulation.sites", zeroed_fraction=None), 2, "zeroed_fraction"),
    ("levels that eight bits do not have", first("simulation.sites", effective_levels=1e4), 2, "levels"),
    ("a damage beyond that of the worst", worst(raised), 2, "named worst"),
    ("a damage that is not the worst's own", worst(lowered), 2, "explains it with a damage"),
    ("a share that is not that of the damage", worst(shared), 2, "share"),
    ("fewer Linears measured than are not listed", first("coverage", linears_measured=0), 3, "coverage"),
    ("coverage of other tokens", first("coverage", tokens=7), 2, "coverage"),
    ("a residual stream of fewer tokens", residual(tokens=9000), 3, "tokens"),
    ("an error that those of its domains do not make", domain_errors(kl_stderr=0.5), 3, "those of its domains"),
    ("more sites than its Linears have", first("coverage", sites=10**6), 2, "coverage"),
    ("more truncated than there are", first("corpus", truncated=10**6), 2, "truncated"),
    ("more with images than there are", first("corpus", images=10**6), 2, "images"),
    ("a zero point that eight bits do not hold", first("simulation.sites", zero_point=128), 2, "zero_point"),
    ("a zero point below all of eight bits", first("simulation.sites", zero_point=-129), 2, "zero_point"),
    ("corpus that does not add up", first("corpus", tokens=7), 2, "corpus"),
    ("more Linears measured than there are", first("coverage", linears_measured=10**6), 2, "coverage"),
    ("count of Linears below zero", first("coverage", linears=-1), 2, "linears"),
    ("amax below zero", first("sites", amax=-20.0), 2, "amax"),
    ("scale above its range", first("scales", scale=1e3), 2, "scale 1000 is above"),
    ("range beyond the tensor", first("scales", max=1e6), 2, "beyond the tensor's amax"),
    ("range upside down", first("scales", min=9e5, max=1e5), 2, "min 900000 is above max"),
    ("amax that is not that of its extremes", first("sites", amax=1e-3), 2, "amax"),
    ("minimum above maximum", first("sites", min=9e9), 2, "min"),
    ("quantile above the peak", first("sites", p99=1e9), 2, "p99"),
    ("more values not finite than there are", first("sites", nonfinite=10**15), 2, "finite"),
    ("more magnitudes than values", first("sites", magnitudes=magnitudes(zeros=10**15)), 2, "magnitudes hold"),
    ("magnitudes that end below the peak", first("sites", magnitudes=magnitudes(first=-40)), 2, "magnitudes end"),
    ("magnitudes beyond all numbers", first("sites", magnitudes=magnitudes(first=10**9)), 2, "first"),
    ("headroom of another model", first("peak", fp16_headroom=1e9), 2, "headroom"),
    ("headroom taken away", first("peak", fp16_headroom=None), 2, "headroom"),
    ("names of schemes exchanged", names_exchanged, 2, "not quantized as under the scheme of this name"),
    ("a scheme of other bits than its name's", scheme(weights={"num_bits": 4, "strategy": "channel"}), 2, "weights"),
    ("a scheme of another's title", scheme(title="INT8 static per-tensor"), 2, "another scheme"),
    ("an observer where the name has none", scheme(observer="mse"), 2, "observer is mse"),
    ("groups of another size than the name's", added_scheme("int4_weights_group_64", "INT4", 32), 2, "weights"),
    (
        "a title that a free name takes",
        added_scheme("mine", "NVFP4, groups of 16 under a static global scale", 32),
        2,
        "another scheme",
    ),
    ("worse than token frequencies", first("simulation.evaluation", unigram_perplexity=2.0), 3, "QA104"),
    ("values not finite that no finding names", first("sites", nonfinite=3), 3, "QA102"),
    ("padding that no finding names", first("corpus", padded=["a"]), 3, "QA106"),
    ("scores on text that calibrates, in no finding", first("simulation.evaluation", overlapping=20), 3, "QA114"),
    ("repeats that no finding names", first("corpus", repeated=3), 3, "repeat others"),
    ("more evaluated than are no copies", first("corpus", overlapping=30), 3, "20 samples were evaluated as no copies"),
    ("a rounding floor far above the KL", evaluation(rounding_floor=5.0), 3, "rounding at the first block"),
    ("an estimate far above the KL", scored(kl_estimate=500.0), 3, "estimate as 500"),
    ("an estimate far below the KL", scored(kl=0.14, kl_stderr=0.001, kl_estimate=1e-9), 3, "estimate as 1e-09"),
    ("a recipe of no groups", scored(groups=0), 3, "quantizes 0 fused groups"),
    ("a recipe of more groups than there are", scored(groups=5000), 3, "quantizes 5,000 fused groups"),
    ("a mixture of more groups than there are", scored(groups=5000, digest="0" * 64), 3, "quantizes 5,000"),
    ("less of a sample than was taken", evaluation(max_tokens_per_sample=1), 2, "1 at most"),
    ("an interval upside down", verdict(kl_low=0.2, kl_high=0.1), 2, "not within its interval"),
    ("an interval that its value is not in", verdict(top1_low=0.1, top1_high=0.2), 2, "not within its interval"),
    ("a price simulated with no KL", first("simulation.groups", price_simulated=True, kl=None), 2, "KL beside it"),
    (
        "a price above the KL that it is of",
        first("simulation.groups", price_simulated=True, kl=0.1, price=0.2),
        2,
        "KL beside it",
    ),
    ("a price outside of its interval", first("simulation.groups", price_low=1.0, price_high=2.0), 2, "interval"),
    ("an SQNR that rounding cannot have", first("simulation.sites", sqnr_db=-500.0), 2, "-500 dB"),
    ("a fingerprint of other files", model(files={"model.gguf": "0" * 64}), 3, "fingerprint"),
    ("no parameters", model(parameters=0), 2, "parameters"),
    ("fewer parameters than one weight", model(parameters=10), 3, "a weight of more"),
    ("fewer layers than tensors have", model(layers=1), 3, "1 layers"),
    ("a hidden size that no weight has", model(hidden_size=7), 3, "hidden size of 7"),
    ("a vocabulary of two", model(vocab_size=2), 3, "vocabulary of 2"),
    ("modules of one weight each", modules_of_one, 3, "hidden size"),
    ("a dtype that is none", model(dtype="float4"), 2, "'float4' is no dtype"),
    ("no domains", first("corpus", domains={}), 2, "of no domain"),
    ("no date", lambda card: card.update(created="yesterday"), 3, "is no date"),
    ("a date to come", lambda card: card.update(created="2999-01-01T00:00:00+00:00"), 3, "to come"),
    ("a version below all", lambda card: card.update(quantaudit_version="-7"), 2, "'-7' is no version"),
    ("a schema below one", lambda card: card.update(schema_version="-1.0"), 2, "schema"),
    ("a schema before the first", lambda card: card.update(schema_version="0.9"), 2, "schema 0.9"),
    ("a number of thousands of digits", first("corpus", seed=10**4000), 2, "4,001 digits"),
    ("verdict on what was not simulated", lambda card: card["verdict"]["schemes"].append(VERDICT), 2, "not simulated"),
]
VERDICT: Json = {
    "scheme": "int2", "title": "INT2", "status": "READY", "kl": 0.0, "top1": 1.0, "perplexity": None,
    "perplexity_base": None, "reason": "", "remedy": "", "worst_groups": [],
}  # fmt: skip
NEIGHBORS: list[tuple[str, Change]] = [
    ("as it was", lambda card: None),
    ("KL well below the limit", scored(kl=0.02, kl_stderr=0.001)),
    ("KL below the limit by more than its error", scored(kl=0.12, kl_stderr=0.01)),
    ("KL of zero without an error", scored(kl=0.0, kl_stderr=0.0, top1=1.0, top1_stderr=0.0)),
    ("perplexity beyond all numbers", scored(perplexity=None)),
    ("least tokens and samples", scored(tokens=256, samples=4)),
    ("all samples truncated, and all with images", every_sample),
    ("the last zero point of eight bits", first("simulation.sites", zero_point=-128)),
    ("a price of zero", estimated(first("simulation.groups", price=0.0))),
    ("worst groups as a report names them", worst(lambda card: None)),
    ("the error of its only domain", lambda card: domain_errors(kl_stderr=row(card)["kl_stderr"])(card)),
    ("magnitudes up to the peak", first("sites", magnitudes=magnitudes())),
    ("a rounding floor below the KL", evaluation(rounding_floor=1e-5)),
    ("an estimate that misses by a half", scored(kl=0.02, kl_stderr=0.001, kl_estimate=0.01)),
    ("an interval around its value", verdict(kl_low=0.0, kl_high=9.0)),
    ("embeddings with rows to spare", lambda card: card["model"].update(vocab_size=card["model"]["vocab_size"] - 8)),
    ("a date without a zone", lambda card: card.update(created="2026-02-03 04:05:06")),
    ("a version on its way", lambda card: card.update(quantaudit_version="0.2.0.dev3+gabc")),
    ("a scheme of a free name", added_scheme("mine", "mine", 32)),
    ("groups of the size that the name gives", added_scheme("int4_weights_group_64", "INT4 in sixty-fours", 64)),
    ("repeats that a finding names", copies_listed),
    ("no clipping at all", first("simulation.sites", clip_rate=0.0, zeroed_fraction=0.0)),
]
POLICIES: list[tuple[str, str, str]] = [
    ("limits that are no numbers", "kl: {ready: .nan, care: .nan, reason: r}", "kl"),
    ("limit without end", "kl: {ready: .inf, care: .inf, reason: r}", "null"),
    ("limit below zero", "kl: {ready: -1, care: 1, reason: r}", "kl.ready"),
    ("limits that do not rise", "kl: {ready: 2, care: 1, reason: r}", "exceed"),
    ("limit as a truth value", "kl: {ready: true, care: true, reason: r}", "kl.ready"),
    ("limit as a word", "kl: {ready: much, care: more, reason: r}", "kl.ready"),
    ("limit of 5,000 digits", "kl: {ready: " + "9" * 5000 + ", care: 1, reason: r}", "5,000"),
    ("limit without a reason", "kl: {ready: 0.1, care: 0.2}", "reason"),
    ("share above one", "top1: {ready: 92, care: 80, reason: r}", "top1"),
    ("section twice", "kl: {ready: 1, care: 2, reason: r}\nkl: {ready: 9, care: 9, reason: r}", "twice"),
    ("key that is not there", "kl: {ready: 0.1, care: 0.2, never: 3, reason: r}", "never"),
    ("severities as a word", "gate: {fail_on: error, severities: none, reason: r, estimate: {accept: true, margin: 2.0,"
     " reason: r}}", "severities"),
    ("margin below one", "gate: {fail_on: error, severities: {}, estimate: {accept: true, margin: 0.5, reason: r},"
     " reason: r}", "margin"),
    ("a power of ten beyond all doubles", "kl: {ready: 1e309, care: 1e310, reason: r}", "finite"),
    ("evidence of the old kind", "evaluation: {tokens: 256, errors: 2.0, reason: r}", "level"),
    ("a level of one", "evaluation: {tokens: 256, samples: 4, level: 1.0, reason: r}", "level"),
    ("one sample is enough", "evaluation: {tokens: 256, samples: 1, level: 0.95, reason: r}", "samples"),
]  # fmt: skip


@pytest.fixture(scope="module")
def card() -> Json:
    loaded: Json = json.loads(dump_card(card_of()))
    return loaded


def gate(capsys: pytest.CaptureFixture[str], card: Path, *more: object) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", "gate", str(RECIPE), "--card", str(card), *map(str, more)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    captured = capsys.readouterr()
    return int(stop.value.code or 0), " ".join((captured.out + captured.err).split())


def written(card: Json, change: Change, path: Path) -> Path:
    edited = json.loads(json.dumps(card))
    change(edited)
    path.write_text(json.dumps(edited).replace("Infinity", "1e400"), encoding="utf-8")
    return path


@pytest.mark.parametrize(("change", "code", "word"), [one[1:] for one in CARDS], ids=[one[0] for one in CARDS])
def test_a_card_that_cannot_be_does_not_pass(
    change: Change, code: int, word: str, card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exited, said = gate(capsys, written(card, change, tmp_path / "card.json"))
    assert exited == code, said
    assert word in said
    assert "unexpected" not in said


@pytest.mark.parametrize("change", [one[1] for one in NEIGHBORS], ids=[one[0] for one in NEIGHBORS])
def test_its_neighbor_that_can_be_passes(
    change: Change, card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exited, said = gate(capsys, written(card, change, tmp_path / "card.json"))
    assert exited == 0, said


@pytest.mark.parametrize("change", [scored(kl=-1.0), scored(top1=None), scored(tokens=16), alone(kl=0.01)])
def test_nor_does_a_simulation(change: Change, card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(card, lambda _: None, tmp_path / "card.json")
    edited = json.loads(json.dumps(card))
    change(edited)
    simulation = tmp_path / "simulation.json"
    simulation.write_text(json.dumps(edited["simulation"]), encoding="utf-8")
    assert gate(capsys, path, "--simulation", simulation)[0] in (2, 3)


@pytest.mark.parametrize(("text", "word"), [one[1:] for one in POLICIES], ids=[one[0] for one in POLICIES])
def test_a_policy_that_cannot_be_is_refused(
    text: str, word: str, card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"extends: default\nname: mine\n{text}\n", encoding="utf-8")
    exited, said = gate(capsys, written(card, lambda _: None, tmp_path / "card.json"), "--policy", policy)
    assert (exited, "policy.yaml" in said, word in said) == (2, True, True), said


def test_a_policy_does_not_extend_itself_by_another_spelling(
    card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text("extends: ./b.yaml\nname: a\n")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    exited, said = gate(capsys, written(card, lambda _: None, tmp_path / "card.json"), "--policy", tmp_path / "a.yaml")
    assert (exited, "extends itself" in said) == (2, True)


def test_no_limit_is_null_and_what_is_extended_is_named(
    card: Json, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("extends: default\nname: any\nkl: {ready: null, care: null, reason: an experiment}\n")
    path = written(card, scored(kl=9.0, kl_stderr=0.1, top1=0.95), tmp_path / "card.json")
    exited, said = gate(capsys, path, "--policy", policy)
    assert exited == 0, said
    assert "policy any (" in said
    assert "which extends default (" in said


PROFILES: list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = [
    ("counts below zero", "counts", lambda a: -a.astype(np.int64)),
    ("counts of more values than there were", "counts", lambda a: a.astype(np.int64) * 7),
    ("patterns out of order", "patterns", lambda a: a[::-1].copy()),
    ("minimum above maximum", "min", lambda a: a + 1e9),
    ("tokens below zero", "tokens", lambda a: -a),
    ("samples that are not there", "sample", lambda a: a + 10_000),
    ("magnitudes below zero", "channel_amax", lambda a: -1 - np.abs(a)),
    ("peaks that are no numbers", "peak_value", lambda a: np.full_like(a, math.nan)),
    ("peaks that rise", "peak_value", lambda a: a[::-1].copy() if len(a) > 1 else a * math.inf),
    ("peaks in channels that are not there", "peak_channel", lambda a: a + 100_000),
    ("medians below zero", "peak_median", lambda a: -1 - np.abs(a)),
    ("more massive values than values", "massive", lambda a: a + 10**15),
]


@pytest.mark.parametrize(("array", "change"), [one[1:] for one in PROFILES], ids=[one[0] for one in PROFILES])
def test_a_profile_that_cannot_be_is_refused(
    array: str, change: Callable[[np.ndarray], np.ndarray], tiny_profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    save_profile(tiny_profile, path)
    with safe_open(path, framework="numpy") as file:
        header, arrays = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = next(key for key in sorted(arrays) if key.endswith(f"down_proj.input/calibration/{array}"))
    arrays[key] = np.ascontiguousarray(change(arrays[key]))
    save_file(arrays, path, metadata=header)
    with pytest.raises(FormatError, match="not a readable profile"):
        load_profile(path)
