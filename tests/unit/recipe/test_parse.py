"""Recipes that llm-compressor would misread are errors that name the line; what it reads is what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from llmcompressor.recipe import Recipe

from quantaudit.errors import RecipeError
from quantaudit.recipe.parse import parse_recipe, read_recipe
from quantaudit.recipe.yaml_positions import YamlPositions
from tests.skeletons import RECIPES, stem

GOOD = """# a comment
quant_stage:
  quant_modifiers:
    QuantizationModifier:
      scheme: W8A8
      ignore:
        - lm_head
        - "re:.*gate"
"""


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_what_is_read_is_what_the_toolkit_reads(path: Path) -> None:
    recipe = read_recipe(path)
    expected = Recipe.create_instance(str(path)).modifiers
    assert [row.modifier.model_dump() for row in recipe.modifiers] == [row.model_dump() for row in expected]
    assert [row.name for row in recipe.modifiers] == [type(row).__name__ for row in expected]
    assert recipe.passed_over == ()


def test_json_recipes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"q_stage": {"q_modifiers": {"QuantizationModifier": {"scheme": "W8A8"}}}}, indent=2))
    (modifier,) = read_recipe(path).modifiers
    assert modifier.modifier.scheme == "W8A8"


def test_places_are_lines_of_the_file() -> None:
    recipe = parse_recipe(GOOD, "r.yaml")
    keys = recipe.modifiers[0].keys
    assert recipe.where(keys) == "r.yaml:4"
    assert recipe.where(recipe.positions.find(keys, "re:.*gate")) == "r.yaml:8"
    assert recipe.where((*keys, "scheme")) == "r.yaml:5"
    assert recipe.where((*keys, "targets", 0)) == "r.yaml:4"  # not written: the modifier's own line
    assert recipe.where(recipe.positions.find(keys, "absent")) == "r.yaml:4"


def test_several_stages_and_groups_keep_their_places() -> None:
    text = GOOD + GOOD.replace("quant_stage", "second_stage").replace("W8A8", "W4A16") + "notes: kept for people\n"
    recipe = parse_recipe(text, "r.yaml")
    assert [recipe.where(row.keys) for row in recipe.modifiers] == ["r.yaml:4", "r.yaml:12"]
    assert [row.modifier.scheme for row in recipe.modifiers] == ["W8A8", "W4A16"]
    assert recipe.passed_over == (("notes",),)


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("", "r.yaml", "empty", "quant_stage"),
        ("# nothing\n", "r.yaml", "empty", "quant_stage"),
        ("- a\n", "r.yaml:1", "the recipe is a list", "quant_stage"),
        ("text\n", "r.yaml:1", "the recipe is a single value", "quant_stage"),
        ("a: b\n", "r.yaml", "holds no modifier", "quant_stage"),
        (
            "\n\nQuantizationModifier:\n  scheme: W8A8\n",
            "r.yaml:3",
            "`QuantizationModifier` is not inside a stage",
            "q",
        ),
        ("m_modifiers:\n  QuantizationModifier: {scheme: W8A8}\n", "r.yaml:2", "not inside a stage", "q"),
        ("q_stage:\n  QuantizationModifier: {scheme: W8A8}\n", "r.yaml:2", "not inside a group", "q"),
        ("q_stage:\n  group:\n    QuantizationModifier: {}\n", "r.yaml:3", "not inside a group", "q"),
        ("stages:\n  - QuantizationModifier: {}\n", "r.yaml:2", "not inside a stage", "q"),
        ("q_stage:\n  q_modifiers:\n    - QuantizationModifier: {}\n", "r.yaml:2", "`q_modifiers` is a list", "q"),
        ("q_stage:\n", "r.yaml:1", "`q_stage` is nothing", "q"),
        ("q_stage:\n  q_modifiers:\n", "r.yaml:2", "`q_modifiers` is nothing", "q"),
        ("q_stage: [1]\n", "r.yaml:1", "`q_stage` is a list", "q"),
        ("q_stage:\n  q_modifiers:\n    QuantizationModifier:\n", "r.yaml:3", "has nothing where its arg", "indent"),
        ("q_stage:\n  q_modifiers:\n    QuantizationModifier: W8A8\n", "r.yaml:3", "a single value where", "indent"),
        ("1: 2\n", "r.yaml:1", "key 1 is not text", "q"),
        (GOOD + "quant_stage: {}\n", "r.yaml:9", "`quant_stage` is given twice, on lines 2 and 9", "keep one"),
        (GOOD + "      scheme: W4A16\n", "r.yaml:9", "`scheme` is given twice", "keep one"),
        (GOOD.replace("Quant", "Quont", 1), "r.yaml:4", "no modifier `Quontization", "did you mean Quantization"),
        (GOOD.replace("ignore:", "ignored:"), "r.yaml:6", "ignored: Extra inputs", "spelling"),
        (GOOD.replace("W8A8", "W8A9"), "r.yaml:5", "must either be a preset scheme", "correct"),
        (GOOD.replace('"re:.*gate"', "re: .*gate"), "r.yaml:8", "ignore.1: Input should be a valid string", "correct"),
        (GOOD + "   bad: indent\n", "r.yaml:9", "not YAML", "indentation"),
        (GOOD.replace('"re:.*gate"', "*gate"), "r.yaml:8", "not YAML: found undefined alias", "quoted"),
        (GOOD.replace('"re:.*gate"', "!!python/object:os.system {}"), "r.yaml:8", "only Python can build", "tags"),
        (
            "s_stage:\n  m_modifiers:\n    QuantizationModifier:\n      config_groups:\n        g:\n"
            "          targets: [Linear]\n          weights:\n            num_bits: 4\n            group_size: 1e20\n",
            "r.yaml:9",
            "config_groups.g.weights.group_size: '<' not supported",
            "correct",
        ),
        ("---\na: 1\n---\nb: 2\n", "r.yaml:3", "not YAML: but found another document", "indentation"),
        (GOOD.replace("scheme: W8A8", "{a: 1"), "r.yaml:", "not YAML", "indentation"),
        (
            "s_stage:\n  m_modifiers:\n    QuantizationModifier:\n      config_groups:\n        g:\n"
            "          targets: [Linear]\n          input_activations: {num_bits: 8, strategy: token}\n",
            "r.yaml:7",
            "Cannot perform static token quantization",
            "correct",
        ),
        (
            "s_stage:\n  m_modifiers:\n    QuantizationModifier:\n      config_groups:\n        g:\n"
            "          targets: [Linear]\n          input_activations: {num_bits: 8, strategy: channel}\n",
            "r.yaml:3",
            "is not supported for activation quantization",
            "correct",
        ),
        *(
            (
                "s_stage:\n  m_modifiers:\n    QuantizationModifier:\n      config_groups:\n        g:\n"
                f"          targets: [Linear]\n          weights: {{num_bits: {bits}, strategy: channel}}\n",
                "r.yaml:",
                "more than the 16 of what is to be quantized",
                "kernels",
            )
            for bits in (17, 10**30)
        ),
        (
            "s_stage:\n  m_modifiers:\n    SmoothQuantModifier: {}\n    QuantizationModifier: {scheme: 8}\n",
            "r.yaml:4",
            "scheme",
            "correct",
        ),
        ("s_stage:\n  m_modifiers:\n    AWQModifier: {}\n", "r.yaml:1", "no subsequent quantization", "correct"),
        (
            "s_stage:\n  m_modifiers:\n    QuantizationModifier:\n      scheme: W8A8\n      config_groups: {}\n",
            "r.yaml:3",
            "either `scheme` or `config_groups`",
            "correct",
        ),
    ],
)
def test_each_mistake_is_named_with_its_line(text: str, where: str, message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "r.yaml")
    assert str(caught.value.where).startswith(where)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.yaml", None, "no such file"),
        ("recipe.txt", b"a: 1", "not a recipe file"),
        ("latin.yaml", b"\xff\xfe\xff", "cannot be read"),
        ("bytes.yaml", b"a: \x00\x01", "not YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / name)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "folder.yaml")


def test_aliases_neither_explode_nor_loop() -> None:
    bomb = "a: &a [x, x]\n" + "".join(
        f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    assert len(YamlPositions(bomb).places) < 200
    assert YamlPositions("a: &a [*a]\n").places[("a", 0)].line == 1


def test_results_on_stdout_stay_clean(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    code = (
        "import sys; from pathlib import Path; from quantaudit.recipe.parse import read_recipe;"
        "from quantaudit.recipe.resolve import resolve; import torch; recipe = read_recipe(Path(sys.argv[1]));"
        "resolve(recipe, torch.nn.Sequential(torch.nn.Linear(2, 2)))"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout == ""
