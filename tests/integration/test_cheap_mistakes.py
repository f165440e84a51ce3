"""A cheap mistake is answered before torch, transformers or llm-compressor is imported, whatever the verb."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from quantaudit.card.schema import dump_card
from quantaudit.card.seal import seal
from quantaudit.measure.profile import Profile, save_profile
from tests.builders import provenance, site_info
from tests.card_factory import make_card

PROGRAM = """
import contextlib, io, json, sys
from pathlib import Path
from quantaudit import cli

for line in json.load(sys.stdin):
    before, loaded = sorted(Path().rglob("*")), set(sys.modules)
    sys.argv = ["quantaudit", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code
    heavy = {"torch", "transformers", "compressed_tensors", "llmcompressor", "datasets"} & (set(sys.modules) - loaded)
    left = sorted(Path().rglob("*")) == before
    print(json.dumps([code, out.getvalue(), error.getvalue(), sorted(heavy), left]))
"""
"""Runs each command of a list; prints its exit code, what it wrote, what it imported, and whether no file came or went.

One process for all of them: as long as each test passes, none finds anything imported by one before it.
"""
IMPORTING = """
from quantaudit import cli

def main(answer=cli.main):
    import compressed_tensors
    answer()

cli.main = main
"""
Answer = tuple[int, str, str, list[str], bool]
RECIPE = "quant_stage:\n  quant_modifiers:\n    QuantizationModifier:\n      scheme: W8A8\n      targets: [Linear]\n"
AUDITED = {
    "no such dtype": ("--dtype fp99", "unknown dtype"),
    "no such device": ("--device abacus", "no such device"),
    "the meta device": ("--device meta", "meta device"),
    "no such experts": ("--experts some", "unknown choice"),
    "no such corpus": ("--corpus nowhere.jsonl", "no such corpus file"),
    "corpus of another kind": ("--corpus recipe.yaml", "unknown kind of corpus"),
    "corpus of another form": ("--corpus card.json", "not a list of rows"),
    "corpus that is not JSON": ("--corpus broken.jsonl", "broken.jsonl:2: not JSON"),
    "output cannot be made": ("--out card.json/x", "cannot be written"),
}
REPORTED = AUDITED | {
    "no such score": ("--score guess", "unknown score"),
    "no number of groups": ("--single-groups few", "not a number"),
    "no such policy": ("--policy hopeful", "no such policy"),
    "no such recipe": ("--recipe nowhere.yaml", "no such file"),
    "recipe that quantizes nothing": ("--recipe empty.yaml", "recipe is empty"),
    "no such profile": ("--profile nowhere.safetensors", "no such file"),
    "no templates": ("--template-dir nowhere", "no such folder of templates"),
}
CASES: list[tuple[str, str]] = [
    *((f"report model {options}", cause) for options, cause in REPORTED.values()),
    *((f"measure model --out new.safetensors {options}", cause) for options, cause in AUDITED.values()),
    ("report model --out full", "--force"),
    ("report nowhere/at/all", "no such model folder"),
    ("report nowhere.gguf", "no such GGUF file"),
    ("report full", "no config.json"),
    ("sites nowhere/at/all", "no such model folder"),
    ("measure nowhere.gguf --out new.safetensors", "no such GGUF file"),
    ("measure model --out card.json", "file exists"),
    ("simulate model --profile nowhere.safetensors --out new.json", "no such file"),
    ("simulate model --profile profile.safetensors --out card.json", "file exists"),
    ("simulate model --profile profile.safetensors --out new.json --scheme INT99", "unknown scheme"),
    ("simulate model --profile profile.safetensors --out new.json --scheme FP8:guess", "unknown observer"),
    ("simulate model --profile profile.safetensors --out new.json --dtype fp99", "unknown dtype"),
    ("simulate model --profile profile.safetensors --out new.json --recipe nowhere.yaml", "no such file"),
    ("simulate nowhere/at/all --profile profile.safetensors --out new.json", "no such model folder"),
    ("merge profile.safetensors nowhere.safetensors --out new.safetensors", "no such file"),
    ("scales nowhere.safetensors --out new.safetensors", "no such file"),
    ("scales profile.safetensors --out new.safetensors --scheme INT99", "unknown scheme"),
    ("scales profile.safetensors --out new.safetensors --observer guess", "unknown observer"),
    ("render nowhere.json --out page", "cannot read the card"),
    ("insert nowhere.json README.md", "cannot read the card"),
    ("insert card.json nowhere.md", "nowhere.md: no such file"),
    ("render card.json --out full", "--force"),
    ("render card.json --out page --template-dir nowhere", "no such folder of templates"),
    ("atlas nowhere --out page", "no such folder"),
    ("compare card.json nowhere.json", "cannot read the card"),
    ("compare card.json published:Nobody", "no such published model"),
    ("compare card.json card.json --fail-on price=1", "no such limit"),
    ("compare card.json card.json --out full", "--force"),
    ("compare card.json card.json --seed 0", "add --logits"),
    ("compare --logits model", "one model alone"),
    ("compare --logits model nowhere/at/all", "no such model folder"),
    ("compare --logits model model --out full", "--force"),
    ("gate nowhere.yaml --card card.json", "no such file"),
    ("gate recipe.yaml --card nowhere.json", "cannot read the card"),
    ("gate recipe.yaml --card card.json --policy hopeful", "no such policy"),
    ("gate recipe.yaml --card card.json --simulation nowhere.json", "cannot read the simulation"),
    ("gate recipe.yaml --card card.json --format xml", "unknown format"),
    ("advise nowhere.yaml --card card.json --model model --out new.yaml", "no such file"),
    ("advise recipe.yaml --card nowhere.json --model model --out new.yaml", "cannot read the card"),
    ("advise recipe.yaml --card card.json --model nowhere/at/all --out new.yaml", "no such model folder"),
    ("advise recipe.yaml --card card.json --model model --out card.json", "an input of this command"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --max-kl 0", "above zero"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --as-good-as gold", "unknown scheme"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --profile nowhere.safetensors", "no such file"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --device abacus", "no such device"),
    ("advise --card card.json --out new.yaml", "one budget is needed"),
    ("advise --card card.json --out new.yaml --max-bits 5 --max-kl 1", "one budget is needed"),
    ("advise --card card.json --out new.yaml --max-bits 0", "above zero"),
    ("advise --card card.json --out new.yaml --max-bits 1", "the smallest has"),
    ("advise --card card.json --out new.yaml --max-bytes lots", "--max-bytes lots"),
    ("advise --card card.json --out new.yaml --verdict good", "no such verdict"),
    ("advise --card card.json --out new.yaml --max-bits 5 --schemes INT99", "unknown scheme"),
    ("advise --card card.json --out new.yaml --max-compute 0.6", "compute is that of a machine"),
    ("advise --card card.json --out new.yaml --max-bits 5 --hardware abacus", "no such machine"),
    ("advise --card card.json --out new.yaml --max-bits 5 --moving-averages", "is for a RECIPE"),
    ("advise --card card.json --out new.yaml --max-bits 5 --no-smoothing", "is for a RECIPE"),
    ("advise --card card.json --out new.yaml --max-bits 5 --hardware abacus.yaml", "no such file"),
    ("advise --card card.json --out new.yaml --max-bits 5 --minimize compute", "for a budget of KL"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --hardware hopper", "for the card alone"),
    ("advise --card card.json --out card.json --max-bits 5", "an input of this command"),
    ("advise recipe.yaml --card card.json --out new.yaml --max-kl 1", "belong together"),
    ("advise recipe.yaml --card card.json --model model --out new.yaml --max-bits 5", "for the card alone"),
    ("verify nowhere.yaml model --card card.json", "no such file"),
    ("verify recipe.yaml nowhere/at/all --card card.json", "no such model folder"),
    ("verify recipe.yaml model --card nowhere.json", "cannot read the card"),
    ("verify recipe.yaml model --card card.json --policy hopeful", "no such policy"),
    ("verify recipe.yaml model --card card.json --save full", "--force"),
    ("verify recipe.yaml model --card card.json --corpus nowhere.jsonl", "no such corpus file"),
    ("conform nowhere --card card.json", "no such artifact"),
    ("conform full --card nowhere.json", "cannot read the card"),
]


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with one good file of each kind, and some that are not."""
    place = tmp_path_factory.mktemp("work")
    card = make_card()
    measured = provenance([site_info("s")], [], model=card.model, corpus=card.corpus)
    profile = Profile(provenance=measured, statistics={})
    save_profile(profile, place / "profile.safetensors")
    card = seal(card.model_copy(update={"profile_sha256": profile.digest}))
    (place / "card.json").write_text(dump_card(card), encoding="utf-8")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "empty.yaml").write_text("")
    (place / "broken.jsonl").write_text('{"text": "fine"}\ntext\n')
    (place / "full").mkdir()
    (place / "full" / "precious.txt").write_text("mine")
    (place / "model").symlink_to(tiny_folder)
    return place


def answers(lines: list[str], folder: Path, *, before: str = "") -> list[Answer]:
    """What a fresh process says to each command. before: a statement that it runs first."""
    done = subprocess.run(
        [sys.executable, "-c", before + PROGRAM],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def answered(folder: Path) -> dict[str, Answer]:
    """The answer to each mistake, by its command."""
    lines = [line for line, _ in CASES]
    return dict(zip(lines, answers(lines, folder), strict=True))


@pytest.mark.parametrize(("line", "cause"), CASES, ids=[line for line, _ in CASES])
def test_a_cheap_mistake_is_answered_without_torch(answered: dict[str, Answer], line: str, cause: str) -> None:
    code, out, error, imported, left = answered[line]
    assert (code, out, imported) == (2, "", []), error
    assert cause in error
    assert len(error.strip().splitlines()) <= 2
    assert left


def test_the_check_would_notice_an_import(folder: Path) -> None:
    [(code, _, _, imported, _)] = answers(["report --dtype fp99"], folder, before=IMPORTING)
    assert code == 2
    assert {"compressed_tensors", "torch"} <= set(imported)
