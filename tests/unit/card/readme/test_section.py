"""The section says what the card says, in at most 40 lines, and no text of a card is anything but text in it."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from quantaudit.card.readme.document import BEGIN, END, find_section, with_section
from quantaudit.card.readme.recipe import served
from quantaudit.card.readme.section import BADGE, BADGE_JSON, CARD, MOST_LINES, PAGE, RECIPE, Section, section
from quantaudit.card.schema import Card, SchemeVerdict, VerdictLimits, dump_card
from quantaudit.card.seal import seal
from quantaudit.card.sections.landscape import place
from quantaudit.simulate.records import SchemeInfo
from tests.card_factory import DYNAMIC, STATIC, make_card
from tests.recipe_cards import card_of
from tests.unit.card.test_render import PAYLOADS, poison

LONG = "x" * 10_000
HOSTILE = (
    *PAYLOADS,
    BEGIN,
    END,
    f"\n{END}\n",
    "--> ",
    "$(rm -rf ~) `id` '; \" ",
    "\x1b[31m\x07\x00",
    LONG,
    "| " * 5_000,
    "<" * 10_000,
)


def give(card: Card, accepted: bool = True) -> Section:
    return section(card, dump_card(card).encode(), lambda recipe: accepted)


def text_of(card: Card, **options: Any) -> str:
    return "\n".join(give(card, **options).lines)


def passing(**changed: Any) -> Card:
    """A card of real modules under which dynamic INT8 passes."""
    card = card_of("llama")
    row = make_card().verdict.schemes[1].model_copy(update={"scheme": DYNAMIC, "status": "READY", "kl": 0.01})
    verdict = card.verdict.model_copy(update={"schemes": [row]})
    return card.model_copy(update={"verdict": verdict} | changed)


class _Structure(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []
        self.comments: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "code":
            self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def structure(text: str) -> _Structure:
    parser = _Structure()
    parser.feed(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))
    parser.close()
    return parser


@pytest.mark.parametrize("payload", HOSTILE)
def test_no_text_of_a_card_changes_the_structure(payload: str) -> None:
    card = make_card()
    hostile = Card.model_validate(poison(card.model_dump(), payload))
    lines = give(hostile).lines
    assert len(lines) <= MOST_LINES
    assert not any("\n" in line or "\r" in line for line in lines)
    text = "\n".join(lines)
    assert find_section(text, "r") == (0, len(text))
    assert with_section("# T\n", lines, "r") == f"# T\n\n{text}\n"
    plain, attacked = structure(text_of(card)), structure(text)
    # A model whose architecture or scheme names are no longer known has no recipe, and so no code to copy.
    dropped = {"pre", "a"}
    assert [tag for tag in attacked.tags if tag not in dropped] == [tag for tag in plain.tags if tag not in dropped]
    assert set(attacked.places) <= set(plain.places)
    assert len(attacked.comments) == 2
    assert len(text) < 20_000
    shown = text.replace("\n", "")
    assert shown.isprintable() or all(letter.isprintable() or letter in "\u200c\u200d" for letter in shown)


def test_long_names_are_cut_and_readable() -> None:
    card = passing(model=card_of("llama").model.model_copy(update={"name": f"start{LONG}"}))
    text = text_of(card)
    assert f"`start{'x' * 74}…`" in text
    assert max(map(len, text.splitlines())) < 1_500


def test_it_fits_with_everything_that_it_can_say() -> None:
    card = make_card()
    row = card.verdict.schemes[1]
    many = [row.model_copy(update={"scheme": f"s{number}", "title": f"Scheme {number}"}) for number in range(40)]
    verdict = card.verdict.model_copy(
        update={
            "schemes": [*card.verdict.schemes, *many],
            "limits": VerdictLimits(kl=[0.03, 0.15], top1=[0.92, 0.8], level=0.95),
        }
    )
    edited = seal(card).model_copy(update={"verdict": verdict})
    lines = give(edited).lines
    assert len(lines) <= MOST_LINES
    text = "\n".join(lines)
    assert "and 37 more in the card" in text
    assert "edited after it was written" in text
    assert "READY is a KL up to 0.03 with a top-1 of 92% or more, READY WITH CARE up to 0.15 with 80%" in text
    assert "vllm serve SmolLM2-135M-Instruct-quantized" in text


def test_the_table_has_a_row_for_each_scheme() -> None:
    card = make_card()
    row = card.verdict.schemes[0].model_copy(update={"kl": 0.1497, "kl_low": 0.1412, "kl_high": 0.1581, "top1": 0.7998})
    open_row = card.verdict.schemes[1].model_copy(
        update={"status": "INCONCLUSIVE", "reason": "Too little text.", "kl": None, "top1": None}
    )
    limits = VerdictLimits(kl=[0.03, 0.15], top1=[0.92, 0.8], level=0.95)
    text = text_of(make_card(verdict=card.verdict.model_copy(update={"schemes": [row, open_row], "limits": limits})))
    assert "❌ **NOT READY** | 0.1497 (0.141 to 0.158) | 79.98% | worst at `layers.3.mlp.down_proj`" in text
    assert "❔ **INCONCLUSIVE** | — (0.0394 to 0.0530) | — | Too little text. |" in text


def test_facts_come_from_the_card() -> None:
    text = text_of(make_card())
    assert "15,168 at most, 3,008 at the input of a Linear layer" in text
    assert "`layers.3.output`, position 0 (the first token), token `](javascript:alert(1))`, channel 161" in text
    assert "larger than 18 of the 27 published peaks" in text
    assert "None of them is of its family." in text
    assert "1 of 211 Linear layers" in text
    assert f"[card.json]({CARD}), without a seal" in text


def test_the_family_is_named_where_it_was_published() -> None:
    model = make_card().model.model_copy(update={"name": "Qwen3-4B"})
    assert "Of its family, Qwen3, 4 are among them: 1,512 to 35,328." in text_of(make_card(model=model))
    nothing = place(100.0).model_copy(update={"published": []})
    assert "not compared." in text_of(make_card(landscape=nothing))


def test_the_whole_card_has_a_digest() -> None:
    sealed = seal(make_card())
    assert f"sealed with SHA-256 `{sealed.seal}`" in text_of(sealed)
    edited = sealed.model_copy(update={"created": "2020-01-01T00:00:00Z"})
    for words, card in {"without a seal": make_card(), "without a seal that fits": edited}.items():
        digest = hashlib.sha256(dump_card(card).encode()).hexdigest()
        assert f"{words}, its file's SHA-256 `{digest}`" in text_of(card)


def test_a_page_is_linked_where_there_is_one() -> None:
    card = make_card()
    given = section(card, b"{}", lambda recipe: True, page=b"<html>")
    assert given.files[PAGE] == b"<html>"
    assert f"[card.html]({PAGE}) is a page of it." in given.lines[-2]
    assert PAGE not in give(card).files
    assert "quantaudit render" in give(card).lines[-2]


@pytest.mark.parametrize("status", ["NOT READY", "INCONCLUSIVE"])
def test_nothing_is_recommended_that_does_not_pass(status: str) -> None:
    card = passing()
    rows = [row.model_copy(update={"status": status}) for row in card.verdict.schemes]
    refused = card.model_copy(update={"verdict": card.verdict.model_copy(update={"schemes": rows})})
    for given in (give(refused), give(card, accepted=False)):
        assert "vllm serve" not in "\n".join(given.lines)
        assert "nothing in this table can be recommended" in "\n".join(given.lines)
        assert RECIPE not in given.files
        assert "`quantaudit advise`" in "\n".join(given.lines)


@pytest.mark.parametrize("code", ["QA102", "QA104"])
def test_where_nothing_can_be_trusted_no_advice_but_the_remedy_is_given(code: str) -> None:
    card = passing()
    rows = [row.model_copy(update={"status": "INCONCLUSIVE"}) for row in card.verdict.schemes]
    finding = make_card().findings[0].model_copy(update={"code": code, "remedy": "check the `tokenizer`"})
    stopped = card.model_copy(
        update={"verdict": card.verdict.model_copy(update={"schemes": rows}), "findings": [finding]}
    )
    text = text_of(stopped)
    assert "before this is mended. Check the `tokenizer`." in text
    assert "advise" not in text
    assert "serve it as it is" not in text


def test_the_recipe_quantizes_what_was_simulated() -> None:
    from quantaudit.recipe.parse import parse_recipe
    from quantaudit.recipe.resolve import resolve
    from quantaudit.recipe.skeleton import skeleton_model
    from quantaudit.simulate.scheme_info import uniform_digests

    for family in ("llama", "qwen3-moe"):
        card = card_of(family)
        assert card.simulation is not None
        skeleton = skeleton_model(card.model.modules, card.model.architecture)
        for scheme in (DYNAMIC, STATIC):
            row = make_card().verdict.schemes[1].model_copy(update={"scheme": scheme, "status": "READY", "kl": 0.01})
            verdict = card.verdict.model_copy(update={"schemes": [row]})
            given = served(card.model_copy(update={"verdict": verdict}), lambda recipe: True)
            assert given is not None
            assert given.calibrated == (scheme == STATIC)
            resolution = resolve(parse_recipe(given.recipe, "r.yaml"), skeleton)
            assert resolution.digest == uniform_digests(card.simulation)[scheme]
            assert not resolution.unsimulated


def test_the_recipe_prefers_ready_then_quantized_activations_then_the_lower_kl() -> None:
    base, simulation = passing(), card_of("llama").simulation
    assert simulation is not None
    weights = SchemeInfo(name="w", title="w", weights={"strategy": "channel"}, input_activations=None, observer=None)
    groups = [*simulation.groups]
    groups += [row.model_copy(update={"scheme": "w"}) for row in groups if row.scheme == DYNAMIC]
    wide = simulation.model_copy(update={"schemes": [*simulation.schemes, weights], "groups": groups})

    def chosen(*rows: tuple[str, str, float]) -> str | None:
        verdicts = [_verdict(*row) for row in rows]
        verdict = base.verdict.model_copy(update={"schemes": verdicts})
        given = served(base.model_copy(update={"verdict": verdict, "simulation": wide}), lambda recipe: True)
        return given.verdict.scheme if given else None

    assert chosen(("w", "READY", 0.001), (DYNAMIC, "READY", 0.01), (STATIC, "READY", 0.02)) == DYNAMIC
    assert chosen((STATIC, "READY", 0.01), (DYNAMIC, "READY", 0.02)) == STATIC
    assert chosen(("w", "READY", 0.001), (DYNAMIC, "READY WITH CARE", 0.05)) == "w"
    assert chosen((STATIC, "NOT READY", 1.0)) is None
    assert chosen(("unknown", "READY", 0.001)) is None


def _verdict(scheme: str, status: str, kl: float) -> SchemeVerdict:
    row = make_card().verdict.schemes[1]
    return row.model_copy(update={"scheme": scheme, "status": status, "kl": kl})


def test_a_recipe_is_not_given_where_a_module_is_no_linear() -> None:
    card = passing()
    assert card.simulation is not None
    rows = [row.model_copy(update={"members": [*row.members, "other"]}) for row in card.simulation.groups]
    odd = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": rows})})
    assert served(odd, lambda recipe: True) is None


def test_commands_hold_only_what_a_shell_takes_as_it_is() -> None:
    model = passing().model.model_copy(update={"name": "a b'; rm -rf $(x) `y`\n🙂", "spec": "/home/me/secret model"})
    text = text_of(passing(model=model))
    assert "vllm serve a-b-rm-rf-x-y-quantized" in text
    assert "secret" not in text
    hub = passing(model=model.model_copy(update={"spec": "org/name", "revision": "abc"}))
    assert 'oneshot(model="org/name", ' in text_of(hub)
    assert "`quantaudit report org/name --revision abc --schemes int8 --out card/`" in text_of(hub)


def test_what_reproduces_it_is_the_command_that_made_it() -> None:
    corpus = make_card().corpus.model_copy(
        update={"spec": "my/own text.jsonl", "available": 500, "max_length": 512, "seed": 3, "special_tokens": "none"}
    )
    text = text_of(make_card(corpus=corpus))
    wanted = "report demo --corpus FILE --samples 120 --max-length 512 --special-tokens none --seed 3"
    assert f"`quantaudit {wanted} --schemes int8 --out card/`" in text
    hub = corpus.model_copy(update={"spec": "org/data:en", "revision": "abc"})
    assert "--corpus org/data:en --samples 120" in text_of(make_card(corpus=hub))


def test_the_recipe_is_plain_yaml_whatever_a_name_holds() -> None:
    model = passing().model.model_copy(update={"name": "x\nquant_stage: {}\n\u2028y: 1"})
    given = give(passing(model=model)).files[RECIPE].decode()
    assert [*yaml.safe_load(given)] == ["quant_stage"]
    assert re.fullmatch(r"# [^\n]*\n", given.splitlines(keepends=True)[0])


def test_without_a_simulation_or_peaks_it_still_says_so() -> None:
    bare = make_card()
    verdict = bare.verdict.model_copy(update={"schemes": [], "headline": "Measured, not simulated: no verdict."})
    peak = bare.peak.model_copy(update={"overall": None, "quantized": None, "fp16_headroom": None})
    card = make_card(sites=[], simulation=None, verdict=verdict, peak=peak, places=None, landscape=place(None))
    given = give(card)
    text = "\n".join(given.lines)
    assert {*given.files} == {CARD, BADGE, BADGE_JSON}
    assert "Measured, not simulated" in text
    assert "no finite peak was measured" in text
    assert "![" not in text
