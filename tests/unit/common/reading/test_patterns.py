"""Regular expressions that backtrack are found before anybody matches them; ordinary ones never are."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from quantaudit.common.reading.patterns import slow_pattern

ROOT = Path(__file__).parents[4]
NAMES = [
    f"model.layers.{layer}.{part}"
    for layer in range(40)
    for part in ("self_attn.q_proj", "mlp.down_proj", "mlp.experts.17.gate_proj", "block_sparse_moe.gate")
]


def scalars(value: object) -> set[str]:
    if isinstance(value, dict):
        return set().union(*map(scalars, value.values()), set())
    if isinstance(value, list):
        return set().union(*map(scalars, value), set())
    return {value} if isinstance(value, str) else set()


def shipped_patterns() -> list[str]:
    files = [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "tests" / "zoo" / "good").glob("*.yaml")]
    return sorted({text for file in files for text in scalars(yaml.safe_load(file.read_text())) if "re:" in text[:3]})


@pytest.mark.parametrize(
    "pattern",
    [
        r"re:(([a-z0-9_.])+)+!",
        r"re:(a|b|m|o|d|e|l|.|\d)*(x+x+)+y$",
        r"re:(.*)*\1z",
        r"re:(?:(?:\w|\.)+)+$(?<=!)",
        "re:" + ".*" * 12 + "!",
    ],
)
def test_a_pattern_that_backtracks_is_named_within_seconds(pattern: str) -> None:
    start = time.monotonic()
    slow = slow_pattern(["Linear", "re:.*down_proj", pattern], NAMES)
    assert slow is not None
    assert slow.text == pattern.removeprefix("re:")
    assert slow.name in NAMES
    assert pattern[3:] in str(slow) or len(pattern) > 80
    assert "more than 1." in str(slow)
    assert time.monotonic() - start < 15


def test_it_is_found_in_any_thread() -> None:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(slow_pattern(["re:((.)+)+!$"], NAMES[:7])))
    thread.start()
    thread.join()
    assert found[0] is not None


def test_shipped_patterns_and_wide_models_pass() -> None:
    wide = [f"model.layers.{i // 1152}.mlp.experts.{i % 384}.{i % 3}_proj" for i in range(100_000)]
    assert len(shipped_patterns()) > 5
    assert slow_pattern(shipped_patterns(), wide) is None


def test_what_is_no_regular_expression_is_left_to_who_uses_it() -> None:
    assert slow_pattern(["re:*", "re:(", "re:" + "(" * 5000, "Linear", "re:(?P<a>x)(?P<a>y)"], NAMES) is None
    assert slow_pattern(["Linear"], NAMES) is None
    assert slow_pattern(["re:.*"], []) is None


def test_a_process_that_dies_counts_as_slow() -> None:
    with mock.patch("subprocess.run", return_value=subprocess.CompletedProcess([], -9, b"0\n1\n")):
        slow = slow_pattern(["re:a", "re:b{7}"], ["died"])
    assert slow is not None
    assert slow.text == "b{7}"


@settings(max_examples=15, deadline=None)
@given(st.lists(st.from_regex(r"[a-z.*_\\d()|?\[\]0-9]{0,12}", fullmatch=True), max_size=6))
def test_short_patterns_pass_whenever_re_itself_is_quick(texts: list[str]) -> None:
    start = time.process_time()
    for text in texts:
        try:
            compiled = re.compile(text)
        except re.error:
            continue
        for name in NAMES[:4]:
            compiled.match(name)
    if time.process_time() - start < 0.05:
        assert slow_pattern([f"re:{text}" for text in texts], NAMES[:4]) is None
