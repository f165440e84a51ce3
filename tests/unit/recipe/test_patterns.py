"""Regular expressions over module names: each name by one of them, and nothing else."""

from __future__ import annotations

import re

from compressed_tensors.utils import match_name
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.model.engine_units import engine_name
from quantaudit.recipe.patterns import exact_patterns, number_pattern

DENSE = [f"model.layers.{i}.{leaf}" for i in range(13) for leaf in ("self_attn.q_proj", "self_attn.o_proj", "mlp.up")]
EXPERTS = [f"model.layers.{i}.mlp.experts.{e}.{leaf}" for i in range(3) for e in range(11) for leaf in ("up", "down")]
ODD = ["lm_head", "model.norm", "blocks.01.proj", "stack.3", "stack.4", "model.layersX3.self_attn.q_proj"]
NAMES = [*DENSE, *EXPERTS, *ODD]


@given(st.sets(st.integers(0, 1299), min_size=1, max_size=40))
def test_a_pattern_of_numbers_matches_these_alone(numbers: set[int]) -> None:
    pattern = re.compile(number_pattern(numbers))
    assert {number for number in range(1300) if pattern.fullmatch(str(number))} == numbers


@given(st.sets(st.sampled_from(NAMES), min_size=1))
def test_every_name_is_matched_by_one_target_and_no_other_module_is(chosen: set[str]) -> None:
    names = [name for name in NAMES if name in chosen]
    patterns = exact_patterns(names, NAMES)
    assert sorted(name for pattern in patterns for name in pattern.names) == sorted(names)
    for pattern in patterns:
        assert [name for name in NAMES if match_name(name, pattern.target)] == [n for n in NAMES if n in pattern.names]


def test_layers_and_projections_that_go_together_are_one_pattern() -> None:
    layers = [name for name in DENSE if not name.startswith("model.layers.2.")]
    assert [pattern.target for pattern in exact_patterns(layers, NAMES)] == [
        r"re:^model\.layers\.(?:[013456789]|1[0-2])(?:\.self_attn\.(?:q_proj|o_proj)|\.mlp\.up)$"
    ]
    assert [pattern.target for pattern in exact_patterns(EXPERTS, NAMES)] == [
        r"re:^model\.layers\.[0-9]+\.mlp\.experts\.[0-9]+\.(?:up|down)$"
    ]


def test_a_range_of_digits_is_a_whole_class() -> None:
    """`[0-29]` would be read as 0 to 29."""
    assert number_pattern([0, 1, 2, 9]) == "[0129]"
    assert number_pattern(range(30)) == "(?:[0-9]|[12][0-9])"


def test_a_number_too_long_for_an_integer_is_a_name() -> None:
    long = f"layers.{'9' * 5000}.up_proj"
    (found,) = exact_patterns([long], [long, "layers.9.up_proj"])
    assert found.target == long


def test_modules_that_an_engine_calls_otherwise_are_matched_by_either_name() -> None:
    names = [f"model.language_model.layers.{i}.mlp.up_proj" for i in range(4)]
    (pattern,) = exact_patterns(names[1:], names, lambda name: engine_name(name, None))
    for name in names:
        for called in (name, engine_name(name, None)):
            assert match_name(called, pattern.target) == (name != names[0])
    assert engine_name(names[0], None) != names[0]
