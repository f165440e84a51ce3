"""Text that does nothing to a terminal: no control character, no change of direction, nothing that is not seen."""

from __future__ import annotations

import re

_HIDES = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Control characters but for tab and line feed, marks and overrides of direction, and what has no width."""
_COLORS = re.compile("(\x1b\\[[0-9;]*m)")


def inert(text: str) -> str:
    r"""Text with its hidden characters as escapes, such as `\x1b` and `\u202e`. Line feeds and tabs stay."""
    return _HIDES.sub(lambda match: ascii(match[0])[1:-1], text) if _HIDES.search(text) else text


def inert_but_colors(text: str) -> str:
    """The same, with sequences that set colors left alone: they move, clear and rename nothing."""
    if "\x1b" not in text:
        return inert(text)
    return "".join(part if index % 2 else inert(part) for index, part in enumerate(_COLORS.split(text)))


def without_colors(text: str) -> str:
    """Text without sequences that set colors."""
    return _COLORS.sub("", text)


def inert_json(text: str) -> str:
    """A JSON document with the same values, its hidden characters as JSON's escapes."""
    return _HIDES.sub(_json_escape, text)


def inert_xml(text: str) -> str:
    """An XML document with the same content, its hidden characters as references."""
    return _HIDES.sub(lambda match: f"&#{ord(match[0])};", text)


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))
