"""A site over cards: every card and family once, inert whatever they say, and nothing of others in its way."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

import quantaudit
from quantaudit.atlas import index, site
from quantaudit.atlas.collect import Entry, collect, families, natural, slug
from quantaudit.card.published.records import find
from quantaudit.card.schema import Card, dump_card
from quantaudit.compare.subjects.of_card import card_subject
from quantaudit.compare.subjects.texts import labels_of_texts
from quantaudit.errors import FormatError, UsageError
from tests.stored_statistics import save, stored
from tests.unit.card.test_render import PAYLOADS, structure
from tests.unit.compare.subjects import a_card, hostile_card


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of cards that hold nothing: drawing them takes a second each."""
    monkeypatch.setattr(site, "render_card", lambda card: card.model.name)


def put(folder: Path, name: str, card: Card) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "card.json").write_text(dump_card(card), encoding="utf-8")


def named(name: str) -> Card:
    card = a_card()
    return a_card(model=card.model.model_copy(update={"name": name}))


def test_cards_at_any_depth_are_found_once(tmp_path: Path) -> None:
    put(tmp_path, "a", named("one"))
    put(tmp_path, "b/c", named("two"))
    put(tmp_path, "b/copy/quantaudit", named("two"))
    model = find("Ling-mini-5T")
    assert model is not None
    save(tmp_path / "d/x_top5_stats.json.gz", stored(model))
    entries = collect(tmp_path)
    assert [entry.subject.label for entry in entries] == ["one", "two", "Ling-mini-5T"]
    assert [entry.page is not None for entry in entries] == [True, True, False]
    assert len(collect(tmp_path, with_published=True)) == 3 + 27


def test_a_folder_without_cards_or_with_a_broken_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 cards"):
        collect(tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        collect(tmp_path / "nowhere")
    put(tmp_path, "a", a_card().model_copy(update={"created": "later"}))
    with pytest.raises(FormatError, match="edited"):
        collect(tmp_path, require_sealed=True)
    (tmp_path / "a/card.json").write_text("{", encoding="utf-8")
    with pytest.raises(FormatError, match=r"a/card\.json"):
        collect(tmp_path)


@pytest.mark.usefixtures("bare")
def test_every_link_leads_to_a_page_and_every_page_is_led_to(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", named("one"))
    put(tmp_path / "in", "b", named("two"))
    written = quantaudit.atlas(tmp_path / "in", tmp_path / "out", published=True)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert names == {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    page = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    links = set(re.findall(r'href="([^"#:]+\.html)"', page))
    assert links == names - {"index.html", "atlas.json"}
    for name in links:
        if name.startswith("families"):
            assert 'href="../index.html"' in (tmp_path / "out" / name).read_text(encoding="utf-8")
    data = json.loads((tmp_path / "out/atlas.json").read_text(encoding="utf-8"))
    assert len(data["models"]) == 29


@pytest.mark.usefixtures("bare")
def test_pages_of_cards_that_left_go_and_files_of_others_stay(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", named("one"))
    put(tmp_path / "in", "b", named("two"))
    first = quantaudit.atlas(tmp_path / "in", tmp_path / "out")
    (tmp_path / "out/cards/mine.html").write_text("mine", encoding="utf-8")
    (tmp_path / "in/b/card.json").unlink()
    second = quantaudit.atlas(tmp_path / "in", tmp_path / "out")
    gone = set(first) - set(second)
    assert len(gone) == 2  # a card, and the family of two
    assert not any(path.exists() for path in gone)
    assert (tmp_path / "out/cards/mine.html").exists()
    before = [path.read_bytes() for path in second]
    assert [path.read_bytes() for path in quantaudit.atlas(tmp_path / "in", tmp_path / "out")] == before


@pytest.mark.usefixtures("bare")
def test_an_old_atlas_cannot_name_a_file_of_others(tmp_path: Path) -> None:
    put(tmp_path / "in", "a", named("one"))
    quantaudit.atlas(tmp_path / "in", tmp_path / "out")
    data = tmp_path / "out/atlas.json"
    old = json.loads(data.read_text(encoding="utf-8"))
    old["models"][0]["page"] = "../in/a/card.json"
    data.write_text(json.dumps(old), encoding="utf-8")
    quantaudit.atlas(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "in/a/card.json").exists()


def test_stages_of_training_are_a_trajectory() -> None:
    entries = [entry for entry in published_entries() if entry.subject.family in ("Ling", "Qwen3")]
    members = {name: [entry.subject for entry in rows] for name, rows in families(entries).items()}
    (view,) = site.trajectories(members["Ling"])
    assert [row[0] for row in view.rows] == [f"Ling-mini-{stage}T" for stage in (5, 10, 15, 20)]
    assert [row[2] for row in view.rows] == ["—", "1.18×", "1.12×", "1.16×"]
    assert list(site.trajectories(members["Qwen3"])) == []


def published_entries() -> list[Entry]:
    from quantaudit.card.published.records import published
    from quantaudit.compare.subjects.of_published import published_subject

    return [Entry(subject=published_subject(row, row.model), path=None) for row in published().models]


def test_a_type_of_model_joins_the_papers_family() -> None:
    card = card_subject(a_card(), "card")
    rows = [Entry(subject=card.model_copy(update={"family": "qwen3_5"}), path=None), *published_entries()]
    names = families(rows)
    assert len(names["Qwen3.5"]) == 5
    assert "qwen3_5" not in names
    assert list(names) == sorted(names, key=natural)


def test_a_trajectory_has_no_ratio_across_two_texts_nor_of_what_may_not_be_believed() -> None:
    stages = [entry.subject for entry in published_entries() if entry.subject.family == "Ling"]
    part = stages[1].conditions.model_copy(update={"samples": 1000})
    stages[1] = stages[1].model_copy(update={"conditions": part})
    stages[3] = stages[3].model_copy(update={"doubts": ["the head is random"]})
    (view,) = site.trajectories(stages)
    assert [row[2] for row in view.rows] == ["—", "—", "—", "—"]


def test_schemes_without_a_column_are_counted() -> None:
    subject = card_subject(a_card(), "card")
    first = subject.schemes[0]
    schemes = [first.model_copy(update={"scheme": f"s{number}"}) for number in range(index.SCHEMES + 3)]
    page = index.index(
        [index.Model(page=None, family="x", family_page=None, subject=subject.model_copy(update={"schemes": schemes}))]
    )
    assert "4 of 7 schemes have a column" in page


def test_texts_and_policies_are_said_before_any_number() -> None:
    mixed = [card_subject(a_card(), "card"), *(entry.subject for entry in published_entries())]
    page = index.index([index.Model(page=None, family="x", family_page=None, subject=subject) for subject in mixed])
    assert "These numbers rest on 2 texts" in page
    assert page.index("rest on 2 texts") < page.index("696,320")
    assert "of the 27 on one text" in page
    assert "script-src 'sha256-" in unescape(page)


def pages_of(payload: str) -> str:
    subjects = [card_subject(hostile_card(payload), "card")] * 2
    models = [index.Model(page="cards/x.html", family="y", family_page="families/y.html", subject=s) for s in subjects]
    return index.index(models) + site.family(subjects)


def test_no_text_of_a_card_changes_the_structure_of_the_site() -> None:
    expected = structure(pages_of("x"))
    for payload in PAYLOADS:
        assert structure(pages_of(payload)) == expected
    assert "x" * 400 not in pages_of("x" * 10_000)


def test_a_name_becomes_a_plain_file_name() -> None:
    names = ["../../etc/passwd", "a b", "A B", "", "漢字", "x" * 10_000, "\u202e", "a\0b", "\ud800"]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{8,60}", text) for text in slugs)


def test_texts_of_one_name_are_told_apart_by_their_digests() -> None:
    one = card_subject(a_card(), "card")
    other = one.model_copy(
        update={"conditions": one.conditions.model_copy(update={"corpus_sha256": "f" * 64}), "label": "other"}
    )
    models = [index.Model(page=None, family="x", family_page=None, subject=row) for row in (one, other)]
    page = index.index(models)
    assert "rest on 2 texts" in page
    assert page.count("SHA-256 ffffffffffff") == 2  # before any number, and in its row


def test_a_family_is_compared_with_a_card_that_may_be_believed() -> None:
    good = card_subject(a_card(), "good").model_copy(update={"label": "good"})
    bad = good.model_copy(update={"label": "bad", "contradictions": ["its scores differ"]})
    assert "Every change is from good." in unescape(
        site.family([bad, good, good.model_copy(update={"label": "third"})])
    )


def test_texts_that_differ_in_their_special_tokens_alone_have_labels_of_their_own() -> None:
    one = card_subject(a_card(), "card")
    template = one.conditions.model_copy(update={"special_tokens": "chat"})
    groups = [[one], [one.model_copy(update={"conditions": template})]]
    assert len(set(labels_of_texts(groups))) == 2
