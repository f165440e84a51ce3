"""Files that do not belong together are refused by every verb that reads them, and the message names what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from quantaudit.card.amend import check_card
from quantaudit.card.build import build_card
from quantaudit.card.redact import redact
from quantaudit.card.schema import dump_card
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError
from quantaudit.measure.profile import load_profile
from quantaudit.policy import load_policy
from quantaudit.simulate.records import load_simulation
from tests.builders import save_checkpoint, tiny_model
from tests.command_line import Capture, run

STATIC = resource_dir("recipes") / "w8a8_static.yaml"


def write_corpus(path: Path, word: str, *, chats: bool = False) -> Path:
    rows: list[dict[str, Any]] = [{"text": f"Sample {i}: {f'{word}, ' * (i + 4)}end."} for i in range(6)]
    if chats:
        rows.append({"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, its report card/ with a simulation, and the texts that it was measured on. Read only."""
    folder = tmp_path_factory.mktemp("base")
    save_checkpoint(folder / "model", tiny_model("mistral", num_hidden_layers=1))
    write_corpus(folder / "plain.jsonl", "words")
    write_corpus(folder / "chats.jsonl", "words", chats=True)
    for name in ("plain", "chats"):
        code, _, _ = run(
            None, "measure", folder / "model", "--corpus", folder / f"{name}.jsonl", "--out", folder / f"{name}.st"
        )
        assert code == 0
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def lower_case(content: dict[str, Any]) -> None:
    content["normalizer"] = {"type": "Lowercase"}


def other_template(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for m in messages %}({{ m.role }}){{ m.content }}{% endfor %}")


CHANGES: dict[str, tuple[str, Callable[[Path], Any], str | None]] = {
    "activation": (
        "plain",
        lambda model: edit(model / "config.json", lambda c: c.update(hidden_act="relu")),
        "with another config.json: hidden_act",
    ),
    "tokenizer": (
        "plain",
        lambda model: edit(model / "tokenizer.json", lower_case),
        "with another tokenizer (tokenizer.json)",
    ),
    "template": ("chats", other_template, "with another chat template"),
    "template that no text goes through": ("plain", other_template, None),
    "generation": (
        "plain",
        lambda model: edit(model / "generation_config.json", lambda c: c.update(max_length=7)),
        None,
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_profile_of_another_configuration_or_tokenizer_is_refused(
    base: Path, tmp_path: Path, capsys: Capture, name: str
) -> None:
    corpus, change, message = CHANGES[name]
    model = Path(shutil.copytree(base / "model", tmp_path / "model"))
    change(model)
    code, _, err = run(
        capsys, "simulate", model, "--profile", base / f"{corpus}.st", "--score", "damage",
        "--evaluation-tokens", 32, "--out", tmp_path / "s.json",
    )  # fmt: skip
    assert (code, (tmp_path / "s.json").exists()) == ((0, True) if message is None else (2, False))
    if message is not None:
        assert f"profile was measured on the same weights (model) {message}" in err
        assert "or measure again" in err


# Card and profile -----------------------------------------------------------------------------------------------------


def write_card_of(base: Path, profile: str, path: Path, **changes: Any) -> Path:
    """The card of a profile of `base`, without a simulation, at a path."""
    measured = load_profile(base / f"{profile}.st")
    card = build_card(measured, [], None, load_policy(), timings={})
    path.write_text(dump_card(card.model_copy(update=changes)))
    return path


@pytest.mark.parametrize("older", [False, True], ids=["with digest", "older"])
@pytest.mark.parametrize("verb", ["advise", "verify"])
def test_a_card_takes_no_results_of_another_profile(
    base: Path, tmp_path: Path, capsys: Capture, verb: str, older: bool
) -> None:
    card = write_card_of(base, "plain", tmp_path / "mine.json", **({"profile_sha256": None} if older else {}))
    before = card.read_bytes()
    given = ("--card", card, "--profile", base / "chats.st")
    model = ("--model", base / "model", "--out", tmp_path / "a.yaml") if verb == "advise" else (base / "model",)
    code, _, err = run(capsys, verb, STATIC, *model, *given)
    assert (code, card.read_bytes() == before, (tmp_path / "a.yaml").exists()) == (2, True, False)
    assert "card was made from another profile: they differ in their corpus (plain.jsonl, " in err
    assert "give the card and the profile of one report" in err


def test_a_profile_with_other_numbers_is_not_the_cards(base: Path) -> None:
    profile = load_profile(base / "plain.st")
    card = build_card(profile, [], None, load_policy(), timings={})
    check_card(card, profile, Path("card.json"))
    check_card(card, redact(profile), Path("card.json"))
    key = next(iter(profile.statistics))
    changed = replace(profile.statistics[key], massive=profile.statistics[key].massive + 1)
    other = replace(profile, statistics={**profile.statistics, key: changed})
    with pytest.raises(FormatError, match=r"differ in their numbers \(profile "):
        check_card(card, other, Path("card.json"))
    run_otherwise = profile.provenance.environment.model_copy(update={"batch_size": 7})
    other = replace(profile, provenance=profile.provenance.model_copy(update={"environment": run_otherwise}))
    with pytest.raises(FormatError, match=r"differ in their batch_size \(1; 7\)"):
        check_card(card, other, Path("card.json"))


def test_a_simulation_of_another_profile_is_refused_on_a_card_and_next_to_one(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "s.json"
    few = ("--score", "damage", "--evaluation-tokens", 32, "--out", out)
    assert run(capsys, "simulate", base / "model", "--profile", base / "chats.st", *few)[0] == 0
    card = write_card_of(base, "plain", tmp_path / "mine.json")
    code, _, err = run(capsys, "gate", STATIC, "--card", card, "--simulation", out)
    assert (code, "--simulation: simulation is of another corpus (" in err) == (2, True)
    own = write_card_of(base, "chats", tmp_path / "own.json")
    assert run(capsys, "gate", STATIC, "--card", own, "--simulation", out)[0] in (0, 1, 3)
    with pytest.raises(FormatError, match="simulation is of another corpus"):
        build_card(load_profile(base / "plain.st"), [], load_simulation(out), load_policy(), timings={})
    edit(own, lambda content: content.update(simulation=json.loads(out.read_text())))
    assert run(capsys, "gate", STATIC, "--card", own)[0] in (0, 1, 3)
    for field in ("fingerprint", "corpus_sha256", "profile_sha256"):
        other = tmp_path / "other.json"
        shutil.copy(own, other)
        edit(other, lambda content, field=field: content["simulation"].update({field: "0" * 64}))
        for arguments in (("gate", STATIC, "--card", other), ("render", other, "--out", tmp_path / "page")):
            code, _, err = run(capsys, *arguments)
            assert (code, "simulation is of " in err, "0000000000000000" in err) == (2, True, True)


def test_scales_name_the_profile_that_they_are_of(base: Path, tmp_path: Path, capsys: Capture) -> None:
    assert run(capsys, "scales", base / "plain.st", "--out", tmp_path / "scales.st")[0] == 0
    with safe_open(tmp_path / "scales.st", framework="numpy") as file:
        metadata = json.loads(file.metadata()["quantaudit"])
    assert metadata["profile"] == load_profile(base / "plain.st").digest
