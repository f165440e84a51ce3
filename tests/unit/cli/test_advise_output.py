"""What the terminal says of a recipe that was changed."""

from __future__ import annotations

from quantaudit.cli.output.advise import changes_in_words
from tests.card_factory import make_advice


def test_changes_are_counted_by_kind_the_most_frequent_first() -> None:
    (change,) = make_advice().changes
    others = [change.model_copy(update={"title": "dynamic per token"}) for _ in range(2)]
    advice = make_advice().model_copy(update={"changes": [change, *others]})
    assert changes_in_words(advice, 1200) == [
        "2 of 1,200 groups changed: dynamic per token",
        "1 of 1,200 groups changed: left unquantized",
    ]
    assert changes_in_words(make_advice().model_copy(update={"changes": []}), 12) == ["no group is changed"]
