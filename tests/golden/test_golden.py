"""Pages of a card, its JSON, recipes and SARIF are written as they were when somebody last looked."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme

from quantaudit.advise.written.amended_recipe import header, targets_of
from quantaudit.advise.written.write_recipe import config_groups, write_recipe
from quantaudit.card.readme.document import with_section
from quantaudit.card.readme.section import RECIPE, section
from quantaudit.card.render import render_markdown
from quantaudit.card.schema import AdviceChange, Card, dump_card
from quantaudit.common.resources import resource_dir
from quantaudit.compare.pages import render_markdown as render_comparison
from quantaudit.compare.run import compare
from quantaudit.compare.subjects.read import read_subjects
from quantaudit.gate.evidence import gather
from quantaudit.gate.formats import to_sarif
from quantaudit.gate.run import judge
from quantaudit.model.sites import Group
from quantaudit.policy import load_policy
from quantaudit.recipe.parse import parse_recipe
from quantaudit.recipe.resolve import resolve
from tests.card_factory import make_advice, make_card
from tests.golden.conftest import Golden
from tests.recipe_cards import card_of, modules_and_groups
from tests.skeletons import skeleton
from tests.unit.compare.subjects import STATIC, a_card, comparison, with_score

LAYERS = 4
"""Of the card: enough for one down_proj with massive inputs."""


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card(LAYERS)


def test_the_card_in_markdown(card: Card, golden: Golden) -> None:
    golden("card.md", render_markdown(card)[0])


def test_the_section_of_a_readme(card: Card, golden: Golden) -> None:
    given = section(card, dump_card(card).encode("utf-8"), lambda recipe: True)
    golden("readme.md", with_section("# SmolLM2-135M-Instruct\n", given.lines, "readme.md"))
    golden("readme_recipe.yaml", given.files[RECIPE].decode("utf-8"))


def test_the_card_in_json(card: Card, golden: Golden) -> None:
    text = dump_card(card)
    assert Card.model_validate_json(text) == card
    golden("card.json", text)


def test_a_comparison_in_markdown(golden: Golden) -> None:
    """Of a release whose static INT8 costs half as much again in every domain, and of the stages of a training."""
    old = a_card()
    assert old.simulation is not None
    recipe = next(row for row in old.simulation.recipes if row.name == STATIC)
    assert recipe.kl is not None
    domains = {name: row.model_copy(update={"kl": (row.kl or 0) * 1.5}) for name, row in recipe.domains.items()}
    pair = comparison(old, with_score(old, STATIC, kl=recipe.kl * 1.5, domains=domains), limits=("kl=0.01", "peak=1.5"))
    stages = compare(read_subjects(["published:Ling"]))
    pages = [render_comparison(row.model_copy(update={"quantaudit_version": "0.1.0"})) for row in (pair, stages)]
    golden("compare.md", "\n".join(pages))


def test_an_advised_recipe(card: Card, golden: Golden) -> None:
    """down_proj of layer 1 stays unquantized, other inputs of an MLP get dynamic scales, the rest stays static."""
    static, dynamic = (_scheme(dynamic=dynamic) for dynamic in (False, True))
    pairs: list[tuple[Group, QuantizationScheme | None]] = [
        (group, None if group.name == "layers.1.mlp.down_proj" else dynamic if ".mlp." in group.name else static)
        for group in modules_and_groups("llama")[2]
        if group.layer is not None
    ]
    titles = {group.name: "dynamic" if scheme else "unquantized" for group, scheme in pairs if scheme is not static}
    costs: dict[str, Any] = {"keeps": False, "price_before": 0.4, "price_after": 0.0, "amax": 20.0}
    changes = {name: AdviceChange(group=name, option=title, title=title, **costs) for name, title in titles.items()}
    targets = partial(targets_of, changes=changes, info=card.model)
    left = targets([group for group, scheme in pairs if scheme is None])
    text = write_recipe(config_groups(pairs, targets), header=header(make_advice(), card.model), left=left)
    resolution = resolve(parse_recipe(text, "advised.yaml"), skeleton("llama"))
    quantized = {member for group, scheme in pairs if scheme is not None for member in group.members}
    assert set(resolution.schemes) == quantized
    golden("advised.yaml", text)


def test_the_gate_in_sarif(golden: Golden) -> None:
    """A static recipe for a model whose down_proj it breaks."""
    recipe = (resource_dir("recipes") / "w8a8_static.yaml").read_text(encoding="utf-8")
    card = card_of(hurt={"down_proj": 0.5})
    report = judge(gather(parse_recipe(recipe, "w8a8_static.yaml"), card, load_policy(), None))
    text = to_sarif(report.model_copy(update={"quantaudit_version": "0.1.0"}))
    assert json.loads(text)["version"] == "2.1.0"
    golden("gate.sarif", text)


def _scheme(*, dynamic: bool) -> QuantizationScheme:
    scheme = preset_name_to_scheme("W8A8", ["Linear"])
    assert scheme.input_activations is not None
    strategy, observer = ("token", None) if dynamic else ("tensor", "minmax")
    inputs = {"dynamic": dynamic, "strategy": strategy, "observer": observer}
    return scheme.model_copy(update={"input_activations": scheme.input_activations.model_copy(update=inputs)})
