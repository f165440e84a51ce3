"""What the pages of the documentation tell their readers to run: commands, and blocks of Python and YAML."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"])
PROGRAMS = ("quantaudit", "python", "make", "pip", "optimum-cli", "hf")
_PLACEHOLDER = re.compile(r"…|\[|\||\.\.\.")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. language: the word behind its fence, "" for none. line: of the fence, from 1 on."""

    page: str
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True, slots=True)
class Command:
    """One command line, split as a shell splits it, comments left out. text: as written."""

    page: str
    line: int
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line} {self.text[:60]}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def synopsis(self) -> bool:
        """Whether it shows how a command is called in general, with alternatives or parts left out."""
        return bool(_PLACEHOLDER.search(self.text))


def blocks() -> list[Block]:
    """Every fenced block of every page."""
    return [
        Block(_name(page), token.map[0] + 1, token.info.strip().partition(" ")[0], token.content)
        for page in PAGES
        for token in _tokens(page)
        if token.type == "fence" and token.map
    ]


def commands() -> list[Command]:
    """Every command of every page: lines of blocks that begin with a program, and spans of code that do."""
    return list(dict.fromkeys([*_in_blocks(), *_in_spans()]))


def _in_blocks() -> Iterator[Command]:
    for block in blocks():
        if block.language not in ("", "bash", "sh", "console", "yaml"):
            continue
        lines = re.sub(r"\\\n\s*", " ", block.text).splitlines()
        for line in lines:
            text = line.strip().removeprefix("- run:").strip()
            if text.split(" ")[0] in PROGRAMS:
                yield Command(block.page, block.line, text)


def _in_spans() -> Iterator[Command]:
    for page in PAGES:
        line = 0
        for token in _tokens(page):
            line = token.map[0] + 1 if token.map else line
            for child in token.children or []:
                words = child.content.split(" ")
                # The name of a program or a verb alone is prose.
                if child.type == "code_inline" and words[0] in PROGRAMS and len(words) > 2 - (words[0] == "make"):
                    yield Command(_name(page), line, " ".join(child.content.split()))


def _tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()
