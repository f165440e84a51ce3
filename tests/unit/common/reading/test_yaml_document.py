"""YAML within limits: what is honest is read as PyYAML reads it, what is not is refused at once, with its line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.common.reading.yaml_document import DEEPEST, LONGEST_NUMBER, MOST_NODES, YamlDocument, read_yaml
from quantaudit.errors import FormatError

ROOT = Path(__file__).parents[4]
RECIPES = sorted([*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "tests" / "zoo" / "good").glob("*.yaml")])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_and_policies_are_read_as_pyyaml_reads_them(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert YamlDocument(text).data == yaml.safe_load(text)


@given(PLAIN)
def test_plain_data_is_read_as_pyyaml_reads_it(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert YamlDocument(text).data == yaml.safe_load(text)


def test_anchors_aliases_and_merge_keys_are_ordinary() -> None:
    text = "base: &b {bits: 8, type: int}\nmore: [*b, *b]\nmerged:\n  <<: *b\n  bits: 4\n"
    data = YamlDocument(text).data
    assert data == yaml.safe_load(text)
    assert data["merged"] == {"bits": 4, "type": "int"}
    several = "a: &a {x: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n"
    assert YamlDocument(several).data == yaml.safe_load(several)


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        (bomb(10), f"more than {MOST_NODES:,} values once its aliases are unfolded", 6),
        ("a: &a [1, *a]\n", "`&a` holds itself", 1),
        ("x: 1\na: &a {b: {c: *a}}\n", "`&a` holds itself", 2),
        ("- " * (DEEPEST + 5) + "x", f"nested deeper than {DEEPEST} levels", 1),
        ("[" * 100_000, f"nested deeper than {DEEPEST} levels", 1),
        ("a: [" + "x," * (MOST_NODES + 5) + "]", f"more than {MOST_NODES:,} values", 1),
        ("a: 1\nb: " + "9" * 5000, f"a number of 5,000 characters, and at most {LONGEST_NUMBER} are read", 2),
        ("b: 1" + ":1" * 300_000, f"a number of 600,001 characters, and at most {LONGEST_NUMBER}", 1),
        ("b: 0x" + "f" * 5000, "a number of 5,002 characters", 1),
        ("b: 1." + "9" * 5000, "a number of 5,002 characters", 1),
        ("kl: 1\ntop1: 2\nkl: 3\n", "`kl` is given twice, on lines 1 and 3", 3),
        ("a:\n  kl: 1\n  'kl': 3\n", "`kl` is given twice, on lines 2 and 3", 3),
        ("a: 2024-13-45\n", "`2024-13-45` is no timestamp", 1),
        ("a: !!int x\n", "`x` is no int", 1),
        ("a: !!bool x\n", "`x` is no bool", 1),
        ("a: !!float x\n", "`x` is no float", 1),
        ("a: !!timestamp x\n", "`x` is no timestamp", 1),
        ('a: "\\ud800"\n', "half of a surrogate pair", 1),
        ("a: !!python/object/apply:os.system [ls]\n", "YAML that only Python can build", 1),
        ("? [a]\n: 1\n", "YAML that only Python can build: found unhashable key", 1),
        ("a: *b\n", "not YAML: found undefined alias", 1),
    ],
)
def test_what_passes_a_limit_is_refused_at_once_with_its_line(text: str, words: str, line: int) -> None:
    start = time.process_time()
    with pytest.raises(FormatError) as caught:
        read_yaml(text, "p.yaml", FormatError)
    assert words in caught.value.message
    assert caught.value.where == f"p.yaml:{line}"
    assert time.process_time() - start < 10
    assert "\n" not in caught.value.message


def test_deep_aliases_count_with_what_they_stand_for() -> None:
    deep = "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40
    with pytest.raises(FormatError, match=f"deeper than {DEEPEST} levels"):
        read_yaml(deep, "p.yaml", FormatError)


def test_a_long_recipe_is_read() -> None:
    text = "ignore:\n" + "".join(f"  - model.layers.{i}.mlp.experts.{i % 128}.down_proj\n" for i in range(50_000))
    assert len(YamlDocument(text).data["ignore"]) == 50_000
