"""A comparison of checkpoints as people read it: what is said of the floor, what is said first, and inert names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt
from scipy.stats import t as student

from quantaudit.compare.limits import Limit
from quantaudit.compare.logits.caveats import LoadedSide
from quantaudit.compare.logits.limits import parse_limits
from quantaudit.compare.logits.records import ComparedModel, LogitsComparison
from quantaudit.compare.logits.run import ComparedText, OtherSide, compare_sides
from quantaudit.compare.logits.view import to_json, view_of
from quantaudit.compare.view import markdown_page, page
from quantaudit.corpus.tokens import TokenizedCorpus
from quantaudit.provenance import Doubt
from quantaudit.simulate.evaluation import Selection
from quantaudit.simulate.logits.aggregate import SampleScore
from quantaudit.simulate.logits.two_models import PairScore
from tests.builders import provenance, random_corpus
from tests.unit.card.test_render import PAYLOADS, structure

KL, WIDTH = 0.01, 260
LIMITS = parse_limits(["kl=0.1", "top1=0.5"])
LOSS = 2.0
"""Of every token, nats: that of a model that has learned something."""


@pytest.fixture(scope="module")
def corpus() -> TokenizedCorpus:
    return random_corpus([24, 20, 16, 12, 10, 8])


def scores(corpus: TokenizedCorpus, finite: tuple[bool, bool] = (True, True)) -> list[PairScore]:
    made = []
    for one in corpus.samples:
        count = len(one.ids)
        row = SampleScore(
            sample=one,
            kl=np.full(count, KL),
            agreed=np.ones(count, bool),
            confident=np.ones(count, bool),
            loss=np.full(count - 1, LOSS),
            loss_base=np.full(count - 1, LOSS),
            drift=np.empty(0),
        )
        made.append(PairScore(forward=row, backward=row, confidence=np.full(count, 0.6), finite=finite))
    return made


def side(name: str, *, doubts: tuple[Doubt, ...] = (), template: str | None = "t", **changed: Any) -> LoadedSide:
    model = ComparedModel(
        name=name, label=name, where=f"models/{name}", architecture="A", parameters=1000, dtype="bfloat16",
        arithmetic="native", width=WIDTH, fingerprint="f" * 64, quantization=None, notes=["a note"],
    )  # fmt: skip
    return LoadedSide(model=model.model_copy(update=changed), doubts=doubts, template=template)


def comparison(
    corpus: TokenizedCorpus,
    *others: LoadedSide,
    base: LoadedSide | None = None,
    floor: float = 1e-3,
    limits: list[Limit] = LIMITS,
    overlapping: int = 0,
    finite: tuple[bool, bool] = (True, True),
) -> LogitsComparison:
    chosen = Selection(samples=list(corpus.samples), left_out=0, overlapping=overlapping)
    text = ComparedText(corpus=corpus, chosen=chosen, chats=True)
    sides = [OtherSide(side=row, scores=scores(corpus, finite), compared=WIDTH) for row in others or (side("other"),)]
    environment = provenance([], []).environment
    return compare_sides(text, base or side("base"), floor, sides, limits, environment=environment)


def test_a_kl_up_to_the_floor_is_rounding(corpus: TokenizedCorpus) -> None:
    for floor, said in ((KL, "nothing but rounding"), (KL / 4, "4.00 times the noise floor")):
        made = comparison(corpus, floor=floor)
        assert made.pairs[0].rounding == (floor == KL)
        assert any(said in line for line in view_of(made).sentences)


@pytest.mark.parametrize(
    ("made", "code"),
    [
        ({"base": side("base", doubts=(Doubt(kind="unused", text="is stored and not used"),))}, "QA712"),
        ({"others": [side("other", doubts=(Doubt(kind="ahead", text="sees what follows"),))]}, "QA712"),
        ({"overlapping": 6}, "QA713"),
    ],
)
def test_what_cannot_be_trusted_is_said_and_decides_nothing(corpus: TokenizedCorpus, made: Any, code: str) -> None:
    others = made.pop("others", [])
    row = comparison(corpus, *others, **made)
    assert [caveat.code for caveat in row.caveats] == [code]
    assert {decision.outcome for decision in row.decisions} == {"inconclusive"}
    assert (row.outcome, row.exit_code) == ("inconclusive", 3)
    assert comparison(corpus, *others, limits=[], **made).exit_code == 0
    for text in (page(view_of(row)), markdown_page(view_of(row))):
        assert -1 < text.index(code) < text.index("kl=0.1") < text.index("Predictions")


@pytest.mark.parametrize(("loss", "perplexity"), [(9.0, np.exp(9.0)), (1e4, None)])
def test_a_base_that_guesses_decides_nothing(
    corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch, loss: float, perplexity: float | None
) -> None:
    monkeypatch.setattr(f"{__name__}.LOSS", loss)
    row = comparison(corpus)
    assert row.perplexity == (perplexity and pytest.approx(perplexity))
    assert [caveat.code for caveat in row.caveats] == ["QA712"]
    assert row.exit_code == 3


def test_what_only_has_to_be_known_leaves_the_answer(corpus: TokenizedCorpus) -> None:
    other = side("other", template=None, dtype="float32", width=WIDTH + 4)
    row = comparison(corpus, other)
    assert [caveat.code for caveat in row.caveats] == ["QA715", "QA716", "QA717"]
    assert row.outcome == "pass"


def test_no_change_among_few_tokens_is_no_proof(corpus: TokenizedCorpus) -> None:
    top1 = comparison(corpus).pairs[0].top1
    tokens = sum(len(one.ids) for one in corpus.samples)
    assert (top1.value, top1.high) == (1.0, 1.0)
    other = 1 / (tokens + 1)
    assert top1.low == pytest.approx(1 - student.ppf(0.975, 5) * np.sqrt(other * (1 - other) / tokens))
    few = comparison(random_corpus([12, 10, 8]))
    assert [row.outcome for row in few.decisions] == ["inconclusive", "inconclusive"]
    assert "30 evaluation tokens" in few.decisions[0].reason


def test_one_of_several_decides_for_all(corpus: TokenizedCorpus) -> None:
    doubted = side("doubted", doubts=(Doubt(kind="values", text="hold a single value", module="x"),))
    row = comparison(corpus, side("good"), doubted)
    assert [decision.outcome for decision in row.decisions] == ["pass", "pass", "inconclusive", "inconclusive"]
    assert row.exit_code == 3
    assert "Every distance is from base." in markdown_page(view_of(row))


def test_json_is_read_again_as_it_was(corpus: TokenizedCorpus) -> None:
    made = comparison(corpus, finite=(True, False))
    assert LogitsComparison.model_validate_json(to_json(made)) == made
    assert made.exit_code == 1


def hostile(corpus: TokenizedCorpus, payload: str) -> LogitsComparison:
    """Three models, with a payload before every text that comes from somebody else."""
    doubts = (Doubt(kind="unused", module=payload, text=f"{payload} is not used"),)
    named = [
        side(f"{payload} {n}", doubts=doubts, where=payload, notes=[payload], quantization=payload) for n in range(3)
    ]
    made = comparison(corpus, *named[1:], base=named[0])
    pairs = [
        pair.model_copy(update={"domains": [row.model_copy(update={"name": payload}) for row in pair.domains]})
        for pair in made.pairs
    ]
    text = made.text.model_copy(update={"corpus": payload, "samples": [payload] * len(made.text.samples)})
    return made.model_copy(update={"pairs": pairs, "text": text})


def test_no_name_changes_the_structure_of_a_page(corpus: TokenizedCorpus) -> None:
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

    def kinds(payload: str) -> list[str]:
        tokens = parser.parse(markdown_page(view_of(hostile(corpus, payload))))
        inline = [child.type for token in tokens for child in token.children or ()]
        return [token.type for token in tokens] + [kind for kind in inline if kind not in ("text", "text_special")]

    expected, lines = structure(page(view_of(hostile(corpus, "x")))), kinds("x")
    assert "table_open" in lines
    assert not {tag for tag, _ in expected} & {"script", "img", "iframe", "form", "input"}
    for payload in (*PAYLOADS, "x" * 10_000):
        html = page(view_of(hostile(corpus, payload)))
        assert structure(html) == expected
        assert len(html) < 100_000
        assert kinds(payload) == lines
