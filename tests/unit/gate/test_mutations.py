"""Whatever a slip of the hand makes of a recipe, it is judged as llm-compressor would run it, or refused at once."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from quantaudit.errors import RecipeError
from quantaudit.gate.evidence import Evidence, gather
from quantaudit.gate.formats import FORMATS
from quantaudit.gate.run import judge
from quantaudit.policy import load_policy
from quantaudit.recipe.parse import parse_recipe
from tests.recipe_cards import card_of
from tests.skeletons import RECIPES
from tests.unit.recipe.test_resolve import applied

ZOO = Path(__file__).parents[2] / "zoo"
JUDGED = [path for path in (ZOO / "broken").glob("*.yaml") if "expect: exit 2" not in path.read_text(encoding="utf-8")]
TEXTS = sorted(path.read_text(encoding="utf-8") for path in [*RECIPES, *JUDGED])
WORDS = [
    *("Linear", "lm_head", "re:.*", "'", '"re:("', "null", "[]", "{}", "true", "-1", "0", ".nan", "2024-01-01"),
    *("token", "tensor", "group", "channel", "float", "4", "16", "minmax", "&a", "*a"),
    *("W8A8", "NVFP4", "MXFP4", "FP8_BLOCK", "UNQUANTIZED", "config_groups:", "targets:", "scheme:"),
]


@st.composite
def slips(draw: st.DrawFn) -> str:
    """A recipe with one line lost, doubled, indented otherwise, or holding another word."""
    lines = draw(st.sampled_from(TEXTS)).splitlines()
    at = draw(st.sampled_from([i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")]))
    slip = draw(st.sampled_from(["lost", "doubled", "deeper", "shallower", "word", "value"]))
    key, colon, _ = lines[at].partition(":")
    changed = {
        "lost": [],
        "doubled": [lines[at], lines[at]],
        "deeper": [f"  {lines[at]}"],
        "shallower": [lines[at][2:]],
        "word": [lines[at].replace(draw(st.sampled_from(lines[at].split())), draw(st.sampled_from(WORDS)))],
        "value": [f"{key}{colon} {draw(st.sampled_from(WORDS))}"],
    }[slip]
    return "\n".join([*lines[:at], *changed, *lines[at + 1 :]])


def evidence(text: str) -> Evidence | RecipeError:
    try:
        return gather(parse_recipe(text, "r.yaml"), card_of("llama"), load_policy(), None)
    except RecipeError as error:
        return error


@given(slips())
@settings(max_examples=300)
def test_a_slip_is_judged_or_refused(text: str) -> None:
    gathered = evidence(text)
    if isinstance(gathered, RecipeError):
        assert "\n" not in gathered.message
        assert gathered.where is not None
        assert gathered.hint is not None
    else:
        assert all(render(judge(gathered)) for render in FORMATS.values())


@given(slips())
@settings(max_examples=300)
def test_what_is_not_refused_the_toolkit_runs_alike(text: str) -> None:
    gathered = evidence(text)
    # Among those that fail is what llm-compressor refuses to run.
    if isinstance(gathered, RecipeError) or judge(gathered).outcome == "fail":
        return
    # Schemes of attention modules are listed as not simulated.
    expected = {name: scheme for name, scheme in applied(text, "llama").items() if not name.endswith("self_attn")}
    assert gathered.resolution.schemes == expected
