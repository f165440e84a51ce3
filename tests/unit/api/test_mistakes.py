"""A wrong argument of a verb is one error of ours, that says what and where, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantaudit
from quantaudit.errors import QuantauditError

RECIPE = "recipes/w8a8_static.yaml"
Call = Callable[[], Any]


def verb(name: str, *args: Any, **kwargs: Any) -> Call:
    return lambda: getattr(quantaudit, name)(*args, **kwargs)


MISTAKES: dict[str, tuple[Call, str]] = {
    **{
        f"audit({option}={value!r})": (verb("audit", "demo", **{option: value}), option.rstrip("s"))
        for option, value in {
            "samples": 0, "max_length": 1, "batch_size": 0, "evaluation_tokens": "many", "seed": "x",
            "special_tokens": "bogus", "attention": "bogus", "single_groups": -3, "schemes": 5, "recipes": [5],
            "device": 3, "dtype": "fp99", "sampels": 4, "experts": "some", "score": "no",
        }.items()
    },
    "one scheme's name is not split into letters": (verb("audit", schemes="NOPE"), "NOPE"),
    "a tokenizer for a checkpoint": (verb("audit", "demo", tokenizer="t"), "tokenizer"),
    "a corpus that is no path": (verb("audit", corpus=3), "corpus"),
    "no such policy": (verb("audit", policy="nobody"), "nobody"),
    "gate without a recipe": (verb("gate", None, "card.json"), "recipe"),
    "gate with a wrong card": (verb("gate", RECIPE, {}), "card"),
    "conform without an artifact": (verb("conform", None, "card.json"), "artifact"),
    "advise with a card in memory": (verb("advise", RECIPE, object()), "card"),
    "advise with an unknown option": (verb("advise", RECIPE, "card.json", sampels=3), "sampels"),
    "one model to compare": (verb("compare_logits", "demo"), "one model"),
    "logits with an unknown option": (verb("compare_logits", "demo", "demo", sampels=3), "sampels"),
    "verify with a card in memory": (verb("verify", RECIPE, object()), "card"),
    "render without a card": (verb("render", None, "out"), "card"),
    "insert without a card": (verb("insert", None, "README.md"), "card"),
    "insert without a README": (verb("insert", "card.json", None), "readme"),
    "merge of nothing": (verb("merge"), "profiles"),
    "merge of something else": (verb("merge", 3), "profiles"),
    "simulate without a profile": (verb("simulate", None), "profile"),
    "a card that is not there": (verb("load_card", "nowhere.json"), "nowhere.json"),
    "a profile that is not there": (verb("load_profile", "nowhere"), "nowhere"),
    "a model of another library": (verb("measure", object(), tokenizer="t"), "tokenizer"),
    "observe nothing": (lambda: quantaudit.observe(None).__enter__(), "NoneType"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("call", MISTAKES)
def test_a_mistake_is_named_in_a_line_or_two(call: str) -> None:
    run, word = MISTAKES[call]
    with pytest.raises(QuantauditError) as error:
        run()
    text = str(error.value)
    assert word.replace("_", "-") in text or word in text
    assert len(text.splitlines()) <= 2, text
    assert len(text) < 1000


def test_a_card_that_is_a_folder_or_no_text_says_so_once(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary"):
        with pytest.raises(QuantauditError) as error:
            quantaudit.load_card(path)
        assert str(error.value).count(str(path)) == 1
