"""Numbers for people, and untrusted text made inert for HTML and Markdown.

Model names, module names and corpus tokens come from strangers. HTML is escaped by Jinja; what this module adds is that
invisible and direction-changing characters become visible, and that text cannot act as Markdown.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantaudit.common.rounding import percentage, significant
from quantaudit.stats.interval import mean_interval

if TYPE_CHECKING:
    from quantaudit.provenance import CorpusInfo
    from quantaudit.simulate.records import DomainScore, RecipeRow

ABSENT = "—"
MINUS = "−"
USUAL_LEVEL = 0.95
"""Confidence level of intervals on cards that name none."""
PRODUCTS = {"native": "native products", "float32": "products in float32, rounded once"}
"""How products of a model's dtype were computed, in words."""

NAME = 120
"""Characters of a name that pages show, at most: a model's or a module's may have ten thousand."""
WHOLE_NAME = 300
"""Characters of it that are shown where someone asks for the whole of it."""
_LONG_WORD = re.compile(rf"[^ ]{{{WHOLE_NAME + 1},}}")

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_NAMED_CONTROLS = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# Format characters that shape scripts and emoji, and neither hide nor reorder text.
_HARMLESS_FORMATS = {"\u200c", "\u200d"}


def number(value: float | None, limits: Sequence[float] = ()) -> str:
    """Three significant digits; whole and with thousands separators from 100 on; '—' for None.

    A power of ten is split off below 0.001 and from ten million on. The minus is U+2212.
    limits: more digits are shown where fewer would lie on another side of one of these than the value.
    """
    if value is None:
        return ABSENT
    if limits and (exact := significant(value, *limits)) != significant(value):
        return exact
    if value == 0:
        return "0"
    sign, magnitude = (MINUS if value < 0 else ""), abs(value)
    if magnitude < 1e-3 or magnitude >= 1e7:
        mantissa, exponent = f"{magnitude:.2e}".split("e")
        return f"{sign}{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    if magnitude >= 99.95:
        return f"{sign}{magnitude:,.0f}"
    digits = 2 - int(f"{magnitude:.2e}".split("e")[1])
    return f"{sign}{magnitude:.{digits}f}"


def kl_interval(row: RecipeRow | DomainScore, level: float | None = None) -> str:
    """`0.0374 to 0.0483`: what a KL may be on other text of this kind, by its standard error; '—' where unknown.

    level: two-sided confidence, 0.95 where a card says none.
    """
    if row.kl is None or row.kl_stderr is None or row.samples is None or row.samples < 2:
        return ABSENT
    interval = mean_interval(row.kl, row.kl_stderr, row.samples, level or USUAL_LEVEL)
    return f"{number(interval.low)} to {number(interval.high)}"


def percent(fraction: float | None, limits: Sequence[float] = ()) -> str:
    """A fraction of one as a percentage with one decimal; never rounded to a false 0 % or 100 %.

    limits: fractions; more decimals are shown where one would lie on another side of one of these than the fraction.
    """
    if fraction is None:
        return ABSENT
    exact = percentage(fraction, *limits)
    if exact != percentage(fraction):
        return exact
    if fraction in (0.0, 1.0):
        return f"{fraction:.0%}"
    if 0 < fraction < 0.0005:
        return "<0.1%"
    if 0.9995 <= fraction < 1:
        return ">99.9%"
    return f"{fraction:.1%}".replace("-", MINUS)


def relative_error(value: float | None) -> str:
    """A relative error as a percentage of three significant digits: these differ by orders of magnitude."""
    return f"{number(None if value is None else 100 * value)}%"


def factor(value: float | None) -> str:
    """A ratio, such as `4.32×`; '—' for None."""
    return ABSENT if value is None else f"{number(value)}×"


def decibels(value: float | None) -> str:
    """A ratio in decibels with one decimal, without the unit; '—' for None."""
    return ABSENT if value is None else f"{value:.1f}".replace("-", MINUS)


def count(value: int | None) -> str:
    """A whole number with thousands separators; '—' for None."""
    return ABSENT if value is None else f"{value:,}"


def counted(value: int, noun: str) -> str:
    """A number of things, such as `1 sample` or `2 samples`."""
    return f"{value:,} {noun}" if value == 1 else f"{value:,} {noun}s"


def share_in_words(share: float, *limits: float) -> str:
    """A share for sentences: never "nearly all" as "all", and on its own side of every limit."""
    return "all but a few" if 0.9999 < share < 1 else percentage(share, *limits, digits=2)


def sample_count(corpus: CorpusInfo) -> str:
    """How many samples were used, and of how many where it was a part."""
    if corpus.available is None:
        return counted(corpus.samples, "sample")
    return f"{corpus.samples:,} of {counted(corpus.available, 'sample')}"


def size(parameters: int) -> str:
    """A number of parameters as models are called: 135M, 7.62B."""
    for unit, factor in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        # 999.9 million would round to 1e+03M.
        if parameters >= 0.9995 * factor:
            return f"{parameters / factor:.3g}{unit}"
    return str(parameters)


def visible(text: str, limit: int | None = None) -> str:
    r"""Text in which nothing hides: controls become `\n` or `\u202e`, and other spaces than U+0020 become escapes too.

    Cut to `limit` characters with an ellipsis, so that one token cannot fill a page.
    """
    plain = text.isascii() and text.isprintable()
    shown = text if plain else "".join(map(_visible_character, text))
    return shown if limit is None or len(shown) <= limit else shown[: limit - 1] + "…"


def short(text: str) -> str:
    """Visible text in which no name is longer than NAME: text without spaces is one."""
    shown = visible(text)
    if " " not in shown:
        return visible(text, NAME)
    return _LONG_WORD.sub(lambda word: f"{word[0][: NAME - 1]}…", shown)


def token(text: str | None) -> str:
    """A token's text: white space at its ends as '␣' (or it could not be seen), at most 40 characters; '—' for None."""
    if text is None:
        return ABSENT
    body = text.strip(" ")
    if not body:
        return "␣" * len(text) if text else "(empty)"
    lead, trail = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    return visible("␣" * lead + body + "␣" * trail, limit=40)


def _visible_character(character: str) -> str:
    if character in _NAMED_CONTROLS:
        return _NAMED_CONTROLS[character]
    category = unicodedata.category(character)
    hides = category[0] == "C" or category in {"Zl", "Zp"} or (category == "Zs" and character not in " \u3000")
    if not hides or character in _HARMLESS_FORMATS:
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


# A backslash would be at the mercy of each flavour's table splitter; a reference is never structure (CommonMark 2.5).
_REFERENCES = {character: f"&#{ord(character)};" for character in "&<>`|\\$"}
_BACKSLASHED = {character: f"\\{character}" for character in "*_[]~"}
_MARKDOWN = str.maketrans(_REFERENCES | _BACKSLASHED)
_WORD_JOINER = "&#8288;"
# Some renderers turn bare addresses into links after references are decoded, hence a joiner that is not shown.
_ADDRESS = re.compile(r"://|(?i:(?<=www)\.)|@")
# What would open a list, a heading or a rule at the start of a line; what needs escaping anywhere is escaped already.
_BLOCK_START = re.compile(r"\s*(?:[-+](?=[\s-]|$)|=|#|\d{1,9}[.)](?=\s|$))")


def markdown(text: str) -> str:
    """Text as inert Markdown on one line: no markup, link, table cell, list or HTML can come of it."""
    escaped = visible(text).translate(_MARKDOWN)
    escaped = _ADDRESS.sub(lambda match: _WORD_JOINER + match[0], escaped)
    start = _BLOCK_START.match(escaped)
    if start:
        end = start.end()
        escaped = f"{escaped[: end - 1]}&#{ord(escaped[end - 1])};{escaped[end:]}"
    return escaped


def markdown_code(text: str) -> str:
    """Text as inline code, in a table or outside: a backtick span where that is safe, else an escaped <code>."""
    shown = visible(text)
    if not shown.strip():
        return f"<code>{'&#32;' * len(shown)}</code>"
    if "`" in shown or "|" in shown or shown != shown.strip():
        return f"<code>{markdown(shown)}</code>"
    return f"`{shown}`"


def prose_parts(text: str) -> list[tuple[bool, str]]:
    """Sentences with `inline code` as (is code, part) pairs, unescaped; a lone backtick is no code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return [(False, text)]
    return [(index % 2 == 1, part) for index, part in enumerate(parts) if part]


_FIRST_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*(?=[\s,;:’']|$)")
_NAMES = {"llm-compressor", "compressed-tensors", "oneshot", "quantaudit", "torch", "transformers"}


def capital(text: str) -> str:
    """Text that begins like a sentence, for where it is one of its own; a name of a tool or a module stays as it is."""
    word = _FIRST_WORD.match(text)
    return text if word is None or word[0] in _NAMES else text[0].upper() + text[1:]


def sentence(text: str) -> str:
    """Text that begins and ends like a sentence."""
    text = capital(text.rstrip())
    return text if text.endswith((".", "!", "?", ":", "…")) else f"{text}."
