"""README.md as text of which only one section is ours. Everything outside its two markers keeps every byte.

A marker is an HTML comment on a line of its own. Whether such a line is a comment, or text in a code block, in another
comment or in the front matter, is what a CommonMark parser says of the whole file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from quantaudit.errors import FormatError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

VERSION = 1
"""Of the section's form; a section of a later one is not touched."""
BEGIN = f"<!-- quantaudit:begin v{VERSION} (written by `quantaudit insert`: changes up to the end marker get lost) -->"
END = "<!-- quantaudit:end -->"

_MARKER = re.compile(r"\s*(?P<mark><!--\s*quantaudit:(?P<kind>begin|end)\b(?P<rest>.*?)-->)\s*")
_MARK = {kind: re.compile(rf"<!--\s*quantaudit:{kind}\b") for kind in ("begin", "end")}
_VERSION = re.compile(r"\s+v(\d{1,9})\b")
# Begins an HTML block that goes on to an end of its own, whatever stands between.
_RAW = re.compile(r"\s*<(?:(?:pre|script|style|textarea)\b|!|\?)", re.IGNORECASE)
# CommonMark's line endings, and no others.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")
_NEWLINES = ("\n", "\r\n", "\r")
_BOM = "\ufeff"


class Span(NamedTuple):
    """Where the section stands: characters from its begin marker up to behind its end marker."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marker:
    kind: Literal["begin", "end"]
    rest: str
    line: int
    start: int
    end: int


def decode(data: bytes, where: str) -> str:
    """The text of a README, line endings and byte order mark unchanged. Raises FormatError where it is not UTF-8."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        _refuse(f"not UTF-8: byte 0x{data[error.start]:02x}", f"{where}:{line}", "save it as UTF-8")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        _refuse("not UTF-8 text: it has null characters, as UTF-16 has", f"{where}:{line}", "save it as UTF-8")
    return text


def with_section(text: str, lines: Sequence[str], where: str) -> str:
    """The text with the section's lines in place of those it has, or after its end and one blank line.

    Lines end as most lines outside the section do. A file without a newline at its end has none afterwards. Raises
    FormatError for markers that do not form one section, and for an end inside a code block or comment without end.
    """
    span = find_section(text, where)
    start, end = span or (len(text), len(text))
    before, after = text[:start], text[end:]
    newline = _newline(before + after)
    section = newline.join(lines)
    if span is None:
        before += _gap(before, newline)
        after = newline if not text.removeprefix(_BOM) or text.endswith(_NEWLINES) else ""
    new = before + section + after
    if _recognized(new, where) != Span(len(before), len(before) + len(section)):
        line = _last_block(text)
        _refuse(
            "the file ends inside what begins there, a code block or a comment without an end: a section would be "
            "part of it",
            f"{where}:{line}",
            "close it",
        )
    return new


def find_section(text: str, where: str) -> Span | None:
    """Where the section stands; None without one. Raises FormatError, with lines, for markers that form no section."""
    markers = list(_markers(text))
    if not markers:
        return None
    begins, ends = ([marker for marker in markers if marker.kind == kind] for kind in ("begin", "end"))
    hint = "leave one begin and one end marker after it, or none"
    for kind, some in (("begin", begins), ("end", ends)):
        if len(some) > 1:
            _refuse(f"{len(some)} {kind} markers, the others on {_lines(some[:-1])}", f"{where}:{some[-1].line}", hint)
    if not begins or not ends:
        there, missing = ("end", "begin") if ends else ("begin", "end")
        if (line := _crowded(text, missing)) is not None:
            _refuse(
                f"the section's {missing} marker has text next to it", f"{where}:{line}", "give it a line of its own"
            )
        _refuse(f"the section's {there} marker without its {missing} marker", f"{where}:{markers[0].line}", hint)
    begin, end = begins[0], ends[0]
    if end.start < begin.start:
        _refuse(
            f"the section's end marker is before its begin marker on line {begin.line}", f"{where}:{end.line}", hint
        )
    version = _VERSION.match(begin.rest)
    if version is None or int(version[1]) > VERSION:
        named = "no version" if version is None else f"version {version[1]}"
        _refuse(
            f"the section's begin marker has {named}, and this quantaudit writes version {VERSION}",
            f"{where}:{begin.line}",
            "update quantaudit, or remove the section with its markers",
        )
    return Span(begin.start, end.end)


def _crowded(text: str, kind: str) -> int | None:
    """The first line, from 1 on, on which something stands next to what would be a marker; None without one."""
    lines = enumerate(lines_of(text.removeprefix(_BOM)), 1)
    return next((n for n, line in lines if _MARK[kind].search(line) and not _MARKER.fullmatch(line)), None)


def lines_of(text: str) -> list[str]:
    """The lines of a text without their ends."""
    return [line.rstrip("\r\n") for line in _LINE.findall(text)]


def _recognized(text: str, where: str) -> Span | None:
    try:
        return find_section(text, where)
    except FormatError:
        return None


def _gap(before: str, newline: str) -> str:
    """What makes one blank line at the end of a text; nothing where it has one, or is empty."""
    lines = _LINE.findall(before.removeprefix(_BOM))
    if not lines:
        return ""
    missing = 0 if lines[-1].endswith(_NEWLINES) else 1
    return newline * (missing + (1 if lines[-1].strip() else 0))


def _newline(text: str) -> str:
    """How most lines end; a line feed where none has an end."""
    windows = text.count("\r\n")
    counts = {"\n": text.count("\n") - windows, "\r\n": windows, "\r": text.count("\r") - windows}
    return max(_NEWLINES, key=lambda ending: counts[ending])


def _markers(text: str) -> Iterator[_Marker]:
    """Comments that are markers, in the order of the text."""
    if "quantaudit:" not in text:  # a megabyte takes a second to parse
        return
    starts, lines = _split(text)
    for token in _blocks(text):
        if token.type != "html_block":
            continue
        first = token.map[0]
        for number in range(*token.map):
            if (match := _MARKER.fullmatch(lines[number])) and not _is_text("\n".join(lines[first:number])):
                kind: Literal["begin", "end"] = "begin" if match["kind"] == "begin" else "end"
                start = starts[number] + match.start("mark")
                end = starts[number] + match.end("mark")
                yield _Marker(kind=kind, rest=match["rest"], line=number + 1, start=start, end=end)


def _is_text(before: str) -> bool:
    """Whether a line of an HTML block is text, such as of a comment. before: the lines of the block before it."""
    return _RAW.match(before) is not None or before.rfind("<!--") > before.rfind("-->")


def _split(text: str) -> tuple[list[int], list[str]]:
    """Where each line starts, and the lines without their ends."""
    matches = list(_LINE.finditer(text, len(_BOM) if text.startswith(_BOM) else 0))
    return [match.start() for match in matches], [match[0].rstrip("\r\n") for match in matches]


@lru_cache(maxsize=2)
def _blocks(text: str) -> Sequence[NamedBlock]:
    """The leaf and container blocks of the Markdown after the front matter, with lines counted from 0 of the file."""
    lines = lines_of(text.removeprefix(_BOM))
    front = front_matter(lines)
    source = "\n".join([""] * front + lines[front:])
    return [NamedBlock(token.type, token.map) for token in _parser().parse(source) if token.map is not None]


class NamedBlock(NamedTuple):
    """A block by CommonMark's parser. map: its first line and the one after its last."""

    type: str
    map: Sequence[int]


def front_matter(lines: Sequence[str]) -> int:
    """How many lines the YAML at the head of a model card takes, its two lines of dashes included; 0 without any."""
    if not lines or lines[0].rstrip() != "---":
        return 0
    return next((number + 1 for number, line in enumerate(lines) if number and line.rstrip() == "---"), 0)


def _last_block(text: str) -> int:
    """The line, from 1 on, on which the last block begins."""
    return 1 + max((block.map[0] for block in _blocks(text)), default=0)


@cache
def _parser() -> MarkdownIt:
    """CommonMark's blocks. What stands inside paragraphs does not matter."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark")
    parser.core.ruler.enableOnly(["normalize", "block"])
    return parser


def _lines(markers: Sequence[_Marker]) -> str:
    numbers = ", ".join(str(marker.line) for marker in markers)
    return f"line{'s' if len(markers) > 1 else ''} {numbers}"


def _refuse(problem: str, where: str, hint: str) -> NoReturn:
    raise FormatError(problem, where=where, hint=hint)
