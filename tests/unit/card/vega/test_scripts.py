"""The page's scripts are bundled once for a version, and whatever happens to what is kept, pages get them whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quantaudit.card.vega import scripts

MADE = "window.vegaEmbed = 'ä';"


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[], str], list[str], Path]:
    """What a new process does, how often it made the bundle, and the file where it is kept."""
    made: list[str] = []

    def make() -> str:
        made.append(MADE)
        return MADE

    kept = tmp_path / "cache" / "vega.js"
    monkeypatch.setattr(scripts, "_bundled", make)
    monkeypatch.setattr(scripts, "_kept_in", lambda: kept)
    return scripts.bundle.__wrapped__, made, kept


def test_it_is_made_once(bundle: tuple[Callable[[], str], list[str], Path]) -> None:
    get, made, kept = bundle
    assert [get(), get(), made, kept.exists()] == [MADE, MADE, [MADE], True]


@pytest.mark.parametrize("damage", ["", "0123\n", MADE, "cut", "not UTF-8"])
def test_a_damaged_one_is_made_again(damage: str, bundle: tuple[Callable[[], str], list[str], Path]) -> None:
    get, made, kept = bundle
    get()
    whole = kept.read_bytes()
    kept.write_bytes({"cut": whole[:-1], "not UTF-8": whole[:-5] + b"\xff"}.get(damage, damage.encode()))
    assert [get(), len(made), kept.read_bytes()] == [MADE, 2, whole]


def test_where_nothing_can_be_kept_it_is_made_each_time(bundle: tuple[Callable[[], str], list[str], Path]) -> None:
    get, made, kept = bundle
    kept.parent.write_text("a file where the folder would be")
    assert [get(), get(), len(made)] == [MADE, MADE, 2]


def test_the_page_may_hold_it() -> None:
    script = scripts.bundle()
    assert "vegaEmbed" in script
    assert [part for part in ("</script", "<!--", "\r") if part in script] == []
