"""The command line as its users meet it: what it leaves behind, what it says when the input is bad, its exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from quantaudit import cli
from quantaudit.card.schema import Card, load_card
from quantaudit.common.choices import INT8_SCHEMES, STANDARD_SCHEMES
from quantaudit.common.outputs.claims import Output, claimed
from quantaudit.measure.profile import Profile, load_profile, save_profile
from tests.builders import save_checkpoint, tiny_model

Quantaudit = Callable[..., tuple[int, str, str]]
REPORT = {"card.json", "card.html", "card.md", "assets", "profile.safetensors", "scales.safetensors"}


@pytest.fixture
def quantaudit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Quantaudit:
    """Runs the command line in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(*arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def main(*arguments: object) -> int:
    """The exit code of a command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quantaudit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short texts in three domains, one chat among them."""
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    rows: list[dict[str, object]] = [
        {"id": f"s{i}", "domain": "abc"[i % 3], "text": f"Sample number {i}: {'some words, ' * (i + 1)}and an end."}
        for i in range(11)
    ]
    rows.append({"id": "chat", "domain": "a", "messages": [{"role": "user", "content": "Is this a chat?"}]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def report(tiny_folder: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one report leaves behind. Read only."""
    folder = tmp_path_factory.mktemp("report") / "card"
    assert main("report", tiny_folder, "--corpus", corpus_file, "--out", folder) == 0
    return folder


def comparable(card: Card) -> dict[str, Any]:
    """A card without what may differ between equal runs."""
    data = card.model_dump(mode="json")
    del data["created"], data["environment"]["timings"], data["seal"]
    return data


def test_a_report_leaves_the_files_of_the_contract(report: Path) -> None:
    assert {path.name for path in report.iterdir()} == REPORT
    assert list((report / "assets").glob("*.png"))


def test_the_card_covers_every_linear_and_the_standard_schemes(report: Path) -> None:
    card = load_card(report / "card.json")
    assert card.simulation is not None
    assert card.coverage.linears == card.coverage.linears_measured == 3 * 7 + 1
    judged = [row.scheme for row in card.verdict.schemes]
    assert tuple(judged[:2]) == INT8_SCHEMES
    assert len(judged) + len(card.simulation.not_judged) == len(STANDARD_SCHEMES)
    assert all(row.kl is not None and row.kl >= 0 for row in card.simulation.recipes)
    measured = {row.group for row in card.simulation.groups if row.damage is not None}
    assert measured == {row.group for row in card.simulation.groups} - {"lm_head"}


def test_scales_are_those_of_the_card_under_the_toolkits_names(report: Path) -> None:
    card = load_card(report / "card.json")
    rows = {
        row.group: row.scale
        for row in card.scales
        if (row.scheme, row.observer) == ("int8_static_per_tensor", "absolute_maximum")
    }
    with safe_open(report / "scales.safetensors", framework="pt") as file:
        assert float(file.get_tensor("model.layers.1.mlp.down_proj.input_scale")) == rows["layers.1.mlp.down_proj"]
        shared = {float(file.get_tensor(f"model.layers.0.self_attn.{m}_proj.input_scale")) for m in "qkv"}
    assert shared == {rows["layers.0.self_attn.qkv_proj"]}


def test_the_same_command_twice_gives_the_same_profile_and_card(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    code, _, err = quantaudit("report", tiny_folder, "--corpus", corpus_file, "--out", tmp_path / "again")
    lines = err.splitlines()
    said = [
        next(i for i, line in enumerate(lines) if text in line) for text in ("from here: one pass", "measuring (whole")
    ]
    assert said == sorted(said), "what it takes is said before it begins"
    assert code == 0
    for name in ("profile.safetensors", "scales.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (report / name).read_bytes()
    assert comparable(load_card(tmp_path / "again" / "card.json")) == comparable(load_card(report / "card.json"))


def test_the_steps_one_at_a_time_give_what_the_report_gives(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "p.safetensors"
    assert quantaudit("measure", tiny_folder, "--corpus", corpus_file, "--out", profile)[0] == 0
    assert profile.read_bytes() == (report / "profile.safetensors").read_bytes()
    assert quantaudit("scales", profile, "--out", tmp_path / "s.safetensors")[0] == 0
    assert (tmp_path / "s.safetensors").read_bytes() == (report / "scales.safetensors").read_bytes()
    assert quantaudit("simulate", tiny_folder, "--profile", profile, "--out", tmp_path / "s.json")[0] == 0
    card = load_card(report / "card.json")
    assert card.simulation is not None
    assert json.loads((tmp_path / "s.json").read_text()) == card.simulation.model_dump(mode="json")
    assert quantaudit("render", report / "card.json", "--out", tmp_path / "page")[0] == 0
    assert (tmp_path / "page" / "card.html").read_bytes() == (report / "card.html").read_bytes()


def test_a_report_from_a_profile_equals_the_one_that_measured(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    profile = report / "profile.safetensors"
    arguments = ("--corpus", corpus_file, "--profile", profile, "--out", tmp_path / "card")
    assert quantaudit("report", tiny_folder, *arguments)[0] == 0
    assert comparable(load_card(tmp_path / "card" / "card.json")) == comparable(load_card(report / "card.json"))


def test_merged_shards_equal_the_whole_profile(quantaudit: Quantaudit, report: Path, tmp_path: Path) -> None:
    whole = load_profile(report / "profile.safetensors")
    for split in ("calibration", "evaluation"):
        part = {key: value for key, value in whole.statistics.items() if key[1] == split}
        save_profile(Profile(provenance=whole.provenance, statistics=part), tmp_path / f"{split}.safetensors")
    out = tmp_path / "whole.safetensors"
    assert quantaudit("merge", "calibration.safetensors", "evaluation.safetensors", "--out", out)[0] == 0
    assert out.read_bytes() == (report / "profile.safetensors").read_bytes()


def test_an_asymmetric_scheme_also_saves_zero_points(quantaudit: Quantaudit, report: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.safetensors"
    arguments = ("--scheme", "int8_asymmetric_static_per_tensor", "--observer", "mse", "--out", out)
    assert quantaudit("scales", report / "profile.safetensors", *arguments)[0] == 0
    with safe_open(out, framework="pt") as file:
        assert file.get_tensor("model.layers.0.mlp.down_proj.input_zero_point").dtype == torch.int8


def test_redacted_cards_hold_no_token_text(
    quantaudit: Quantaudit, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = ("--corpus", corpus_file, "--redact-text", "--out", tmp_path / "card")
    assert quantaudit("report", tiny_folder, *arguments)[0] == 0
    card = load_card(tmp_path / "card" / "card.json")
    assert {peak.token for site in card.sites for peak in site.peaks} == {None}


def test_sites_lists_what_would_be_observed_without_weights(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path
) -> None:
    code, out, err = quantaudit("sites", tiny_folder)
    assert code == 0
    assert "layers.*.self_attn.qkv_proj.input" in out
    assert "13 fused groups of 22 Linears, 0 not measured" in err


def test_a_report_refuses_to_overwrite_without_force(quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    code, _, err = quantaudit("report", tiny_folder, "--out", tmp_path / "full")
    assert (code, "--force" in err) == (2, True)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["precious.txt"]


@pytest.mark.parametrize(("arguments", "whose"), [(["--dtype", "int3"], "--dtype"), ([], "another run writes there")])
def test_a_wrong_option_is_said_before_one_is_told_to_wait(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path, arguments: list[str], whose: str
) -> None:
    with claimed([Output(option="--out", path=tmp_path / "card", folder=True)], {}):
        code, _, err = quantaudit("report", tiny_folder, "--out", tmp_path / "card", *arguments)
    assert code == 2
    assert whose in err


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("verb", "name"), [("report", "card"), ("measure", "profile.safetensors")])
def test_to_resume_what_has_ended_names_what_starts_again(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path, verb: str, name: str, kept: bool
) -> None:
    place = Output(option="--out", path=tmp_path / name, folder=verb == "report")
    if place.folder:
        place.path.mkdir()
    (place.path / "card.json" if place.folder else place.path).write_text("{}")
    if kept:
        place.hidden("resume").mkdir()
    code, _, err = quantaudit(verb, tiny_folder, "--out", place.path, "--resume")
    assert code == 2
    assert ("no interrupted run is kept there: --force starts again" in err) is not kept
    assert "--force" in err


def folder_without_config(tmp: Path, _: Path) -> list[object]:
    (tmp / "empty").mkdir()
    return ["report", tmp / "empty"]


def truncated_weights(tmp: Path, tiny: Path) -> list[object]:
    shutil.copytree(tiny, tmp / "cut")
    weights = tmp / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return ["report", tmp / "cut"]


def pickled_weights(tmp: Path, tiny: Path) -> list[object]:
    shutil.copytree(tiny, tmp / "pickle")
    (tmp / "pickle" / "model.safetensors").rename(tmp / "pickle" / "pytorch_model.bin")
    return ["report", tmp / "pickle"]


def corpus_of(name: str, *lines: str) -> Callable[[Path, Path], list[object]]:
    def arguments(tmp: Path, tiny: Path) -> list[object]:
        (tmp / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return ["report", tiny, "--corpus", tmp / name]

    return arguments


BAD: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "missing folder": (lambda tmp, tiny: ["report", tmp / "nowhere"], "no such model folder"),
    "folder without config": (folder_without_config, "no config.json"),
    "truncated safetensors": (truncated_weights, "broken or truncated"),
    "pickle only": (pickled_weights, "pickled"),
    "unknown hub id offline": (lambda tmp, tiny: ["report", "nobody/no-such-model"], "Hub cannot be reached"),
    "missing gguf": (lambda tmp, tiny: ["report", tmp / "no.gguf"], "no such GGUF file"),
    "empty corpus": (corpus_of("empty.jsonl"), "corpus is empty"),
    "single sample": (corpus_of("one.jsonl", '{"text": "alone"}'), "one sample only"),
    "row without text": (corpus_of("rows.jsonl", '{"text": "fine"}', '{"body": "?"}'), "rows.jsonl:2: "),
    "row that is not JSON": (corpus_of("bad.jsonl", '{"text": "fine"}', "text"), "bad.jsonl:2: not JSON"),
    "ids beyond the vocabulary": (
        corpus_of("ids.jsonl", '{"input_ids": [1, 2]}', '{"input_ids": [1, 99999]}'),
        "99999 is outside the vocabulary",
    ),
    "unknown dtype": (lambda tmp, tiny: ["report", tiny, "--dtype", "int3"], "unknown dtype"),
    "unknown device": (lambda tmp, tiny: ["report", tiny, "--device", "abacus"], "no such device"),
    "unknown experts": (lambda tmp, tiny: ["report", tiny, "--experts", "some"], "unknown choice"),
    "unknown policy": (lambda tmp, tiny: ["report", tiny, "--policy", "hopeful"], "no such policy"),
    "missing profile": (lambda tmp, tiny: ["report", tiny, "--profile", tmp / "p.safetensors"], "no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_exits_2_with_cause_and_remedy_and_leaves_nothing(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path, case: str
) -> None:
    build, cause = BAD[case]
    arguments = build(tmp_path, tiny_folder)
    before = sorted(tmp_path.rglob("*"))
    code, out, err = quantaudit(*arguments, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert cause in err
    message = err[err.index("error: ") :].strip().splitlines()
    assert len(message) == 2, "the cause on one line, the remedy on the next"
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["file.txt/card", "/proc/quantaudit/card"])
def test_an_unwritable_place_is_refused_before_anything_runs(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path, out: str
) -> None:
    (tmp_path / "file.txt").write_text("a file")
    code, _, err = quantaudit("report", tiny_folder, "--out", out)
    assert (code, "cannot be written" in err, "loading" in err) == (2, True, False)


def test_debug_shows_the_traceback(quantaudit: Quantaudit, tmp_path: Path) -> None:
    assert "Traceback" in quantaudit("report", tmp_path / "nowhere", "--debug")[2]


def test_samples_beyond_the_context_are_cut_and_reported(
    quantaudit: Quantaudit, tiny_folder: Path, tmp_path: Path
) -> None:
    text = "\n".join(["short and fine", "x" * 5000, "another short one"])
    (tmp_path / "long.txt").write_text(text)
    code, _, err = quantaudit("report", tiny_folder, "--corpus", "long.txt", "--out", "card")
    card = load_card(tmp_path / "card" / "card.json")
    context = card.model.context_length
    assert (code, card.corpus.truncated, "1 sample" in err) == (0, 1, True)
    assert max(site.tokens for site in card.sites) == card.corpus.tokens <= 40 + (context or 0)
    assert any(finding.code == "QA103" for finding in card.findings)


def test_nan_weights_finish_name_their_first_site_and_are_not_ready(
    quantaudit: Quantaudit, corpus_file: Path, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] = float("nan")
    folder = save_checkpoint(tmp_path / "nan", model)
    code, _, _ = quantaudit("report", folder, "--corpus", corpus_file, "--out", "card")
    card = load_card(tmp_path / "card" / "card.json")
    assert code == 0
    assert {row.status for row in card.verdict.schemes} == {"NOT READY"}
    finding = next(row for row in card.findings if row.code == "QA102")
    assert "layers.1.mlp.output" in finding.message
    assert all("layers.1.mlp.output" in row.reason for row in card.verdict.schemes)
    text = (tmp_path / "card" / "card.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["simulation"]["recipes"][0]["kl"] is None


def test_batch_size_changes_no_count_and_is_recorded(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    assert quantaudit("measure", tiny_folder, "--corpus", corpus_file, "--batch-size", 8, "--out", out)[0] == 0
    one, eight = load_profile(report / "profile.safetensors"), load_profile(out)
    assert eight.provenance.environment.batch_size == 8
    for site in one.sites:
        a, b = one.whole(site.name), eight.whole(site.name)
        assert a is not None
        assert b is not None
        assert (a.tokens, a.distribution.counts.sum()) == (b.tokens, b.distribution.counts.sum())


def test_batches_by_tokens_change_no_count_and_are_recorded(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "p.safetensors"
    measure = ("measure", tiny_folder, "--corpus", corpus_file, "--out", out)
    assert quantaudit(*measure, "--batch-tokens", 200)[0] == 0
    one, several = load_profile(report / "profile.safetensors"), load_profile(out)
    ran = several.provenance.environment
    assert ran.batch_tokens == 200
    assert 1 < ran.batch_size < len(one.provenance.samples)
    for site in one.sites:
        a, b = one.whole(site.name), several.whole(site.name)
        assert a is not None
        assert b is not None
        assert (a.tokens, a.distribution.counts.sum()) == (b.tokens, b.distribution.counts.sum())
    code, _, err = quantaudit(*measure, "--force", "--batch-tokens", 200, "--batch-size", 4)
    assert code == 2
    assert "--batch-tokens: says how large batches are, and so does --batch-size" in err


def test_the_papers_statistics_are_written_beside_the_profile(
    quantaudit: Quantaudit, tiny_folder: Path, corpus_file: Path, tmp_path: Path
) -> None:
    arguments = ("measure", tiny_folder, "--corpus", corpus_file, "--out", "p.safetensors")
    assert quantaudit(*arguments, "--export-reference", "r.json")[0] == 0
    profile, data = load_profile(tmp_path / "p.safetensors"), json.loads((tmp_path / "r.json").read_text())
    assert [row["site"] for row in data["sites"]] == [site.name for site in profile.sites]
    (tmp_path / "p.safetensors").unlink()
    code, _, err = quantaudit(*arguments, "--export-reference", "r.json")
    assert (code, "r.json" in err) == (2, True)
    assert not (tmp_path / "p.safetensors").exists()


def test_a_profile_of_another_corpus_is_refused(
    quantaudit: Quantaudit, report: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text("one text\nanother text\n")
    profile = report / "profile.safetensors"
    arguments = ("--profile", profile, "--corpus", "other.txt", "--out", "card")
    code, _, err = quantaudit("report", tiny_folder, *arguments)
    assert (code, "other text" in err) == (2, True)


@pytest.mark.parametrize(("verb", "place"), [("measure", "old.safetensors"), ("report", "card")])
def test_an_interrupt_while_measuring_leaves_what_was_there_and_nothing_else(
    quantaudit: Quantaudit,
    tiny_folder: Path,
    corpus_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    place: str,
) -> None:
    from quantaudit.measure import finished_batches as measure

    passes: list[object] = []
    forward = measure.forward

    def third_is_interrupted(*arguments: Any) -> Any:
        passes.append(arguments)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(measure, "forward", third_is_interrupted)
    (tmp_path / "old.safetensors").write_bytes(b"old")
    code, out, err = quantaudit(verb, tiny_folder, "--corpus", corpus_file, "--out", place, "--force")
    assert (code, out, len(passes)) == (130, "", 3)
    assert err.endswith("error: interrupted\n")
    assert "Traceback" not in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"old.safetensors": b"old"}


def test_help_answers_without_torch() -> None:
    program = (
        "import sys; from quantaudit import cli; sys.argv = ['quantaudit', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'altair', 'vl_convert', 'scipy', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    for arguments in (["--help"], ["report", "--help"], ["measure", "--help"], ["simulate", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Example" in done.stdout or "Commands" in done.stdout


def test_every_verb_has_help_with_an_example(quantaudit: Quantaudit) -> None:
    for verb in ("report", "sites", "measure", "merge", "scales", "simulate", "render"):
        code, out, _ = quantaudit(verb, "--help")
        assert (code, f"quantaudit {verb}" in out) == (0, True)


def test_version(quantaudit: Quantaudit) -> None:
    assert re.fullmatch(r"quantaudit \d+\.\d+\.\d+\n", quantaudit("--version")[1])
