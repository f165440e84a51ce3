"""Cards that the product made of tiny models: kept, so that a reviewer can open them.

    python -m tests.golden.measured        measure again, and write tests/golden/<name>/card.json

What the floating point of another machine changes is compared loosely, by tests/golden/test_measured.py.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quantaudit.card.schema import Card

FOLDER = Path(__file__).parent
CARD, PAGE = "card.json", "card.md"


OUTLIER, FACTOR = 57, 256.0
"""A channel of down_proj's input in the dense model's first layer, and how much larger it is made."""


def dense() -> Card:
    """Two layers that have learned a small language (tests/learned.py), so that there are verdicts.

    One channel is much larger than it was learned, and the weights that read it smaller: the same function, and INT8
    breaks there.
    """
    from tests.learned import train

    model = train("dense")
    mlp = model.model.layers[0].mlp
    mlp.up_proj.weight.data[OUTLIER] *= FACTOR
    mlp.down_proj.weight.data[:, OUTLIER] /= FACTOR
    return _learned("dense", model)


def mixture() -> Card:
    """The same with experts, two of which a token is routed to, as they were learned."""
    from tests.learned import train

    return _learned("mixture", train("moe"))


def _learned(name: str, model: Any) -> Card:
    from tests.builders import save_checkpoint
    from tests.learned import corpus_rows, word_tokenizer, write_corpus

    save_checkpoint(Path(name), model, word_tokenizer())
    return _card(name, str(write_corpus(Path("language.jsonl"), corpus_rows(90))), evaluation_tokens=1024)


def vision_language() -> Card:
    """A vision tower, a projector and layers of text with random weights, which no verdict is given on; some samples
    have images.
    """
    from tests.vision import save_corpus, save_gemma

    save_gemma(Path("vision_language"))
    return _card("vision_language", str(save_corpus(Path("images"))))


CARDS: dict[str, Callable[[], Card]] = {"dense": dense, "mixture": mixture, "vision_language": vision_language}
"""By the folder that each is kept in. What lies next to these folders is made by arithmetic: tests/card_factory.py."""


def _card(model: str, corpus: str, evaluation_tokens: int = 128) -> Card:
    from quantaudit.api.audit import audit
    from quantaudit.settings import Options

    options: Options = {"max_length": 48, "evaluation_tokens": evaluation_tokens, "scheme_set": "int8"}
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
