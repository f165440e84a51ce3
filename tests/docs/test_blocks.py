"""Every block of Python in the README and the documentation runs, and every block of YAML says what is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from quantaudit.simulate.allocation import load_hardware
from tests.builders import load, random_corpus, save_checkpoint, tiny_model
from tests.docs.pages import Block, blocks
from tests.docs.workspace import RECIPES, ROOT
from tests.llm_compressor import loader

SMALL = {'audit("demo", samples=72)': 'audit("MODEL", samples=8, max_length=48, evaluation_tokens=64)'}
"""How blocks are made small: what is written, and what runs."""


def of(language: str) -> list[object]:
    return [pytest.param(block, id=block.name) for block in blocks() if block.language == language]


@pytest.fixture
def namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What readers have when they come to a block: a model, its tokenizer, batches, and a recipe in their folder."""
    monkeypatch.chdir(tmp_path)
    folder = save_checkpoint(tmp_path / "MODEL", tiny_model("llama"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in RECIPES:
        (tmp_path / name).write_text((ROOT / "recipes/w8a8_dynamic.yaml").read_text())
    loaded = load(folder)
    batches = loader(list(random_corpus([24, 20, 16, 12, 9, 8]).samples))
    return {"model": loaded.model, "tokenizer": loaded.tokenizer, "loader": batches, "dataset": batches}


@pytest.mark.parametrize("block", of("python"))
def test_a_block_of_python_runs(block: Block, namespace: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = block.text
    for written, small in SMALL.items():
        text = text.replace(written, small)
    exec(compile(text, block.name, "exec"), namespace)
    if "print(" in text:
        assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("block", of("yaml"))
def test_a_block_of_yaml_is_a_recipe_a_machine_or_steps_of_a_workflow(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, list):
        assert all(set(step) == {"run"} for step in content)
        return
    import quantaudit.integrations.llmcompressor  # noqa: F401  registers the modifier
    from quantaudit.recipe.parse import read_recipe

    path = tmp_path / "recipe.yaml"
    path.write_text(block.text)
    if any("mac_time" in part for part in content.values()):
        assert load_hardware(str(path)).mac_time
        return
    assert read_recipe(path).modifiers
