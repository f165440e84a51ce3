"""Text that others wrote does nothing to a terminal, and says the same in JSON and XML."""

from __future__ import annotations

import io
import json
import unicodedata
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from quantaudit.common.printing.console import InertConsole
from quantaudit.common.printing.inert import inert, inert_but_colors, inert_json, inert_xml

HOSTILE = "calm\x1b[2J\x1b]0;mine\x07\u202egnorw\x9b31m\x7f\u2066\ufeff\r\x00"
SEEN = "plain größer 漢字 עברית \u0928\u092e\u0938\u094d\u0924\u0947 🙂 — → ≤\t\n"


def hides(text: str) -> bool:
    """By Unicode's own tables: a control, a format character that is not part of a word, or half of a pair."""
    return any(
        unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(c) in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
        for c in text
        if c not in "\t\n"
    )


def test_what_hides_is_written_out_and_what_is_seen_stays() -> None:
    assert inert(SEEN) == SEEN
    assert inert(HOSTILE).startswith("calm\\x1b[2J\\x1b]0;mine\\x07\\u202egnorw\\x9b31m\\x7f")
    assert not hides(inert(HOSTILE))


@given(st.text())
def test_nothing_hides_in_any_text(text: str) -> None:
    assert not hides(inert(text))
    assert not hides(inert_but_colors(text).replace("\x1b", ""))
    assert inert(inert(text)) == inert(text)


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",))))
def test_json_says_the_same(text: str) -> None:
    document = inert_json(json.dumps({text: [text]}, ensure_ascii=False))
    assert json.loads(document) == {text: [text]}
    assert not hides(document)


def test_xml_says_the_same() -> None:
    element = ElementTree.Element("a", {"b": "x\u202ey\u0085"})
    element.text = "z\u2028\x7f\U000e0041"
    document = inert_xml(ElementTree.tostring(element, encoding="unicode"))
    assert not hides(document)
    again = ElementTree.fromstring(document)
    assert (again.text, again.attrib) == (element.text, element.attrib)


def test_colors_pass_and_other_sequences_do_not() -> None:
    assert inert_but_colors("\x1b[1;31mred\x1b[0m\x1b[2J\x1b[H") == "\x1b[1;31mred\x1b[0m\\x1b[2J\\x1b[H"


def test_a_console_prints_texts_inertly_in_every_form_and_keeps_its_own_colors() -> None:
    file = io.StringIO()
    console = InertConsole(file=file, force_terminal=True, width=200, color_system="standard")
    table = Table(title=escape(HOSTILE))
    table.add_column(HOSTILE)
    table.add_row(escape(HOSTILE), style="green")
    for what in (table, Text(HOSTILE, style="red"), escape(HOSTILE), {"key": HOSTILE}):
        console.print(what)
    written = file.getvalue()
    assert "calm" in written
    assert "\x1b[31m" in written
    assert not any(part in written for part in ("\x1b[2J", "\x1b]0;", "\x07", "\u202e", "\x9b", "\x7f", "\ufeff"))


def test_a_bar_still_moves_the_cursor() -> None:
    file = io.StringIO()
    console = InertConsole(file=file, force_terminal=True, width=80)
    with Progress(console=console, auto_refresh=False) as bar:
        bar.add_task("one", total=2)
        bar.refresh()
    assert "\x1b[2K" in file.getvalue() or "\x1b[?25l" in file.getvalue()
