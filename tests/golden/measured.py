"""Cards that the product made of tiny models with random weights: kept, so that a reviewer can open them.

    python -m tests.golden.measured        measure again, and write tests/golden/<name>/card.json

What the floating point of another machine changes is compared loosely, by tests/golden/test_measured.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from quantaudit.card.schema import Card

FOLDER = Path(__file__).parent
CARD, PAGE = "card.json", "card.md"


def mixture() -> Card:
    """Two layers of eight experts each, two of which a token is routed to."""
    from tests.builders import save_checkpoint
    from tests.families import family_model

    save_checkpoint(Path("mixture"), family_model("qwen3-moe", num_experts=8))
    return _card("mixture", "builtin", samples=24)


def vision_language() -> Card:
    """A vision tower, a projector and two layers of text; half of the samples have images."""
    from tests.vision import save_corpus, save_gemma

    save_gemma(Path("vision_language"))
    return _card("vision_language", str(save_corpus(Path("images"))))


CARDS: dict[str, Callable[[], Card]] = {"mixture": mixture, "vision_language": vision_language}
"""By the folder that each is kept in; the dense card is made by arithmetic (tests/card_factory.py)."""


def _card(model: str, corpus: str, samples: int | None = None) -> Card:
    from quantaudit.api.audit import audit
    from quantaudit.settings import Options

    options: Options = {"samples": samples, "max_length": 48, "evaluation_tokens": 128, "scheme_set": "int8"}
    return audit(model, corpus, device="cpu", arithmetic="float32", progress=False, **options).card


def measure(name: str) -> Card:
    """One of them again, in a folder of its own, so that no path is in it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return CARDS[name]()


def main() -> None:
    """Write all of them."""
    from quantaudit.card.render import render_markdown
    from quantaudit.card.schema import dump_card

    for name in CARDS:
        card = measure(name)
        (FOLDER / name).mkdir(exist_ok=True)
        (FOLDER / name / CARD).write_text(dump_card(card), encoding="utf-8")
        (FOLDER / name / PAGE).write_text(render_markdown(card)[0], encoding="utf-8")


if __name__ == "__main__":
    main()
