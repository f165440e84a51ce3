"""Near copies, and what only looks like them: by a second implementation, kind by kind, and at changing rates."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantaudit.corpus.images import Pictures
from quantaudit.corpus.repeats.find import repeats_of
from quantaudit.corpus.repeats.near import find_near
from quantaudit.corpus.repeats.ngrams import SIZE, Grams
from quantaudit.corpus.repeats.spelling import Spelling
from quantaudit.corpus.rows import CorpusRow, Picture
from quantaudit.provenance import Split
from tests.builders import sample, tiny_tokenizer

Gram = tuple[int, ...]
WORDS = [f"w{number}" for number in range(4000)]


# By a second implementation ------------------------------------------------------------------------------------------


def windows(text: list[int], size: int) -> list[Gram]:
    return [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]


def covered(text: list[int], starts: list[int]) -> list[bool]:
    """Tokens in one of the n-grams that start here."""
    return [any(i <= place < i + SIZE for i in starts) for place in range(len(text))]


class Brute:
    """The same rules by sets of tuples, one comparison after the other."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts
        self.samples: dict[Gram, set[int]] = defaultdict(set)
        self.after: dict[Gram, dict[Gram, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.before: dict[Gram, dict[Gram, set[int]]] = defaultdict(lambda: defaultdict(set))
        for place, text in enumerate(texts):
            for gram in windows(text, SIZE):
                self.samples[gram].add(place)
            for longer in windows(text, SIZE + 4):
                self.after[longer[:-4]][longer[-4:]].add(place)
                self.before[longer[4:]][longer[:4]].add(place)

    def varied(self, gram: Gram, sides: dict[Gram, dict[Gram, set[int]]]) -> bool:
        most = max((len(places) for places in sides.get(gram, {}).values()), default=0)
        return 4 * most < 3 * (len(self.samples[gram]) - 1)

    def boilerplate(self, text: list[int], known: set[Gram]) -> list[bool]:
        grams = windows(text, SIZE)
        starts = [i for i, gram in enumerate(grams) if gram in known and len(self.samples[gram]) >= 3]
        common = [*covered(text, starts), False]
        out, start = [False] * len(text), None
        for end, flag in enumerate(common):
            if flag and start is None:
                start = end
            elif not flag and start is not None:
                inside = range(start, end - SIZE + 1)
                parting = [i for i in inside if i < len(grams) - 4 and self.varied(grams[i], self.after)]
                meeting = [i for i in inside if i >= 4 and self.varied(grams[i], self.before)]
                for place in range(start, end):
                    out[place] |= bool(parting) and place < parting[-1] + SIZE
                    out[place] |= bool(meeting) and place >= meeting[0]
                start = None
        return out

    def shift(self, places: dict[Gram, int], grams: list[Gram], which: list[int]) -> int:
        shifts = sorted(places[grams[i]] - i for i in which)
        return max(shifts, key=lambda first: sum(first <= other <= first + 32 for other in shifts))

    def in_order(self, places: dict[Gram, int], grams: list[Gram], which: list[int]) -> list[int]:
        if not which:
            return []
        shift = self.shift(places, grams, which)
        return [i for i in which if shift <= places[grams[i]] - i <= shift + 32]

    def take(self, places: dict[Gram, int], sample: int) -> None:
        grams = windows(self.texts[sample], SIZE)
        known = [i for i, gram in enumerate(grams) if gram in places]
        own = self.shift(places, grams, known) if known else 10**9 * (sample + 1)
        for i, gram in enumerate(grams):
            places.setdefault(gram, own + i)

    def is_new(self, places: dict[Gram, int], sample: int) -> bool:
        text = self.texts[sample]
        grams = windows(text, SIZE)
        known = [i for i, gram in enumerate(grams) if gram in places]
        if not known:
            return True
        ordered = self.in_order(places, grams, known)
        new = [not flag for flag in covered(text, ordered)]
        longest = max(map(len, "".join("x" if flag else " " for flag in new).split()), default=0)
        if 8 * sum(new) < len(text) and longest < 8:
            return False
        boilerplate = self.boilerplate(text, set(places))
        shared = [i for i in known if all(boilerplate[i : i + SIZE])]
        copied = self.in_order(places, grams, [i for i in known if i not in shared])
        old = covered(text, copied)
        tokens = sum(not flag and not left_out for flag, left_out in zip(old, boilerplate, strict=True))
        if 2 * tokens >= boilerplate.count(False):
            return True
        own = [i for i in range(len(grams)) if i not in shared]
        return 3 * sum(i not in copied for i in own) >= 2 * len(own)

    def find(self, splits: list[Split]) -> tuple[set[int], set[int]]:
        def keep(places: dict[Gram, int], samples: list[int]) -> set[int]:
            left_out = set()
            for place in samples:
                if self.is_new(places, place):
                    self.take(places, place)
                else:
                    left_out.add(place)
            return left_out

        calibrating = [place for place, split in enumerate(splits) if split == "calibration"]
        evaluating = [place for place, split in enumerate(splits) if split == "evaluation"]
        repeated = keep({}, calibrating)
        places: dict[Gram, int] = {}
        for place in calibrating:
            self.take(places, place)
        overlapping = {place for place in evaluating if not self.is_new(places, place)}
        return overlapping, repeated | keep(places, [place for place in evaluating if place not in overlapping])


FRAGMENTS = [list(range(10 * k, 10 * k + length)) for k, length in enumerate((1, 1, 2, 6, 13, 15, 22, 31))]
TEXT = st.lists(st.sampled_from(FRAGMENTS), max_size=7).map(lambda parts: [token for part in parts for token in part])
DRAWN = st.lists(st.tuples(TEXT, st.sampled_from(["calibration", "evaluation"])), max_size=9)


@given(DRAWN)
def test_they_are_those_of_a_second_implementation(drawn: list[tuple[list[int], Split]]) -> None:
    texts, splits = [text for text, _ in drawn], [split for _, split in drawn]
    found = find_near([np.asarray(text, np.int64) for text in texts], splits)
    assert (found.overlapping, found.repeated) == Brute(texts).find(splits)


@given(st.lists(TEXT, max_size=6))
def test_equal_ngrams_have_equal_numbers(texts: list[list[int]]) -> None:
    grams = Grams.of([np.asarray(text, np.int64) for text in texts])
    numbers: dict[Gram, int] = {}
    for text, ids in zip(texts, grams.ids, strict=True):
        for gram, number in zip(windows(text, SIZE), ids.tolist(), strict=True):
            assert numbers.setdefault(gram, number) == number
    assert len(set(numbers.values())) == len(numbers)


# Kind by kind --------------------------------------------------------------------------------------------------------


def prose(draw: Random, words: int = 120) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def changed(text: str, rate: float, draw: Random) -> str:
    return " ".join(draw.choice(WORDS) if draw.random() < rate else word for word in text.split())


def one_in_forty(draw: Random) -> list[str]:
    text = prose(draw, 300)
    return [text, *(changed(text, 1 / 40, draw) for _ in range(30))]


def every_fortieth(draw: Random) -> list[str]:
    """At the same places in all copies, another word in each."""
    text = prose(draw).split()
    return [" ".join(draw.choice(WORDS) if i % 40 == 19 else word for i, word in enumerate(text)) for _ in range(30)]


def pairs_of_copies(draw: Random) -> list[str]:
    texts = [prose(draw) for _ in range(4)]
    return [*texts, *(changed(text, 1 / 40, draw) for text in texts)]


def overlapping_windows(draw: Random) -> list[str]:
    """Each shares three quarters with the next; four of them have no more text than one."""
    words = prose(draw, 160).split()
    return [" ".join(words[i : i + 100]) for i in range(0, 61, 25)]


def headed(draw: Random) -> list[str]:
    text = prose(draw)
    return [text, f"{prose(draw, 20)} {text}"]


def distinct(draw: Random) -> list[str]:
    return [prose(draw) for _ in range(30)]


def system_prompt(draw: Random) -> list[str]:
    prompt = prose(draw, 300)
    return [f"{prompt} user {prose(draw, draw.randrange(7, 40))} assistant" for _ in range(30)]


def few_shots_and_instructions(draw: Random) -> list[str]:
    """Boilerplate before, between and after what is asked."""
    before, between, after = prose(draw, 90), prose(draw, 60), prose(draw, 20)
    return [f"{before} {prose(draw, 10)} {between} {prose(draw, 12)} {after}" for _ in range(12)]


def answers_to_one_question(draw: Random) -> list[str]:
    question = prose(draw, 60)
    return [f"{question} {prose(draw, 50)}" for _ in range(3)]


def licenses(draw: Random) -> list[str]:
    text = prose(draw, 120)
    return [f"copyright {draw.choice(WORDS)} {draw.choice(WORDS)} {text} {prose(draw, 40)}" for _ in range(12)]


def records(draw: Random) -> list[str]:
    keys = [prose(draw, 2) for _ in range(8)]
    return [json.dumps({key: prose(draw, 2) for key in keys}) for _ in range(30)]


def rows_of_a_table(draw: Random) -> list[str]:
    head = "date , customer , product , number , price , currency , country"
    rows = [[f"{draw.choice(WORDS)} , {draw.choice(WORDS)} , EUR" for _ in range(12)] for _ in range(8)]
    return [f"{head} {' '.join(row)}" for row in rows]


def imports(draw: Random) -> list[str]:
    lines = [f"import {prose(draw, 1)}" for _ in range(20)]
    return [f"{' '.join(lines)} {prose(draw, 40)}" for _ in range(12)]


def form_with_slots(draw: Random) -> list[str]:
    """A third of it is other in each."""
    parts = [prose(draw, 14) for _ in range(5)]
    return [" ".join(f"{part} {prose(draw, 7)}" for part in parts) for _ in range(12)]


def lines_of_a_log(draw: Random) -> list[str]:
    """The same few lines, each time in another order."""
    lines = [prose(draw, 15) for _ in range(7)]
    orders = {tuple(draw.sample(lines, 4)) for _ in range(12)}
    return [" ".join(order) for order in sorted(orders)]


def short(draw: Random) -> list[str]:
    return [f"what is the capital of the land {draw.choice(WORDS)} {number} ?" for number in range(30)]


Kind = Callable[[Random], list[str]]


def counted(texts: list[str], draw: Random) -> int:
    """How many of the texts are evidence, of all in one split, in random order."""
    draw.shuffle(texts)
    tokens = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    number = {token: i for i, token in enumerate(sorted({token for text in tokens for token in text}))}
    samples = [sample([number[token] for token in text]) for text in tokens]
    return len(samples) - len(repeats_of(samples, None).all)


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (one_in_forty, 2),
        (every_fortieth, 1),
        (pairs_of_copies, 4),
        (overlapping_windows, 2),
        (headed, 1),
    ],
)
def test_near_copies_count_once(kind: Kind, most: int) -> None:
    for seed in range(5):
        assert 1 <= counted(kind(Random(seed)), Random(seed)) <= most


@pytest.mark.parametrize(
    "kind",
    [
        distinct,
        system_prompt,
        few_shots_and_instructions,
        answers_to_one_question,
        licenses,
        records,
        rows_of_a_table,
        imports,
        form_with_slots,
        short,
    ],
)
def test_what_shares_boilerplate_is_evidence(kind: Kind) -> None:
    for seed in range(5):
        texts = kind(Random(seed))
        assert counted(texts, Random(seed)) == len(texts)


def test_the_same_sentences_in_another_order_are_mostly_evidence() -> None:
    """Of the same few sentences, but for orders that repeat most of another one."""
    texts = [lines_of_a_log(Random(seed)) for seed in range(12)]
    assert sum(counted(text, Random(0)) for text in texts) >= 0.75 * sum(map(len, texts))


def test_second_halves_of_calibration_text_are_none() -> None:
    draw = Random(0)
    calibrating = [draw.choices(range(4000), k=150) for _ in range(6)]
    halves = [sample(text[75:]) for text in calibrating]
    others = [sample(draw.choices(range(4000), k=75)) for _ in range(2)]
    found = repeats_of([*(sample(text, split="calibration") for text in calibrating), *halves, *others], None)
    assert found.overlapping == set(range(6, 12))
    assert found.repeated == set()


@pytest.mark.parametrize("copies", [2, 5, 30])
@pytest.mark.parametrize("rate", [0.005, 0.01, 0.025])
def test_random_copies_are_found_up_to_one_token_in_forty(rate: float, copies: int) -> None:
    draw = Random(copies)
    originals = [prose(draw, 400) for _ in range(60 // copies)]
    texts = [*originals, *(changed(text, rate, draw) for text in originals for _ in range(copies - 1))]
    assert len(originals) <= counted(texts, draw) <= 1.1 * len(originals) + 1


def test_at_one_word_in_three_a_text_is_another() -> None:
    draw = Random(1)
    original = prose(draw, 400)
    assert counted([changed(original, 1 / 3, draw) for _ in range(20)], draw) == 20


# As samples are ------------------------------------------------------------------------------------------------------


def test_white_space_makes_no_other_copy() -> None:
    tokenizer = tiny_tokenizer()
    text = "The quick brown fox jumps over the lazy dog, and then it sleeps in the sun until the evening comes."
    spaced = text.replace(" ", "\n ").replace("brown", "green")
    samples = [sample(tokenizer(words)["input_ids"]) for words in (text, spaced)]
    first, second = Spelling.of(samples, tokenizer).numbers(samples)
    assert len(first) == len(second) == len(text.replace(" ", ""))
    assert np.count_nonzero(first != second) == 3
    assert repeats_of(samples, tokenizer).repeated == {1}


class Images:
    """A processor that stands id 9 for its images."""

    image_token_ids = (9,)


def with_image(ids: list[int], sha256: str) -> object:
    row = CorpusRow.model_construct(pictures=(Picture.model_construct(sha256=sha256),))
    made = sample(ids)
    object.__setattr__(made, "pictures", Pictures(row, Images(), "auto", "here"))
    return made


def test_other_images_make_other_samples_and_their_tokens_no_text() -> None:
    asked, other = list(range(20, 60)), list(range(70, 90))
    samples = [
        with_image([9] * 50 + asked, "a"),
        with_image([9] * 50 + asked[:-2] + [1, 2], "b"),
        with_image([9] * 50 + other, "a"),
        with_image([9] * 50 + asked[:-2] + [1, 2], "a"),
    ]
    assert repeats_of(samples, None).repeated == {3}  # type: ignore[arg-type]
