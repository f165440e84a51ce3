"""Changes to a file, drawn from a seeded generator: of its bytes, its text, its tree, and of what it is at all."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

DIGITS = "9" * 5000
HOSTILE_TEXTS = (
    "",
    " ",
    "a\x1b[2J\u202eb\x07",
    "\ud800",
    "x" * 100_000,
    "re:(([a-z0-9_.])+)+!",
    "re:*",
    "re:" + "(" * 200,
    "../../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "{{ 1 }}",
    "[bold]x[/]",
    "[/nope]",
    "%s%n",
    "Linear",
    "demo",
    ".",
    "é\u0301漢",
    "1e999",
    "-1",
)
HOSTILE_NUMBERS = (0, -1, 1, 2, 10**9, 2**31, 2**63, -(2**63), 10**30, 1e308, -1e308, 1e-320, 0.5, -0.0, 3)
NESTED = json.loads("[" * 90 + "]" * 90)
HOSTILE_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    [],
    {},
    [None],
    {"": None},
    [[]],
    {"a": {"b": [1]}},
    float("nan"),
    float("inf"),
    list(range(1000)),
    NESTED,
)


def mutated(data: bytes, kind: str, random: Random) -> bytes:
    """The content of a file of this kind (json, jsonl, yaml, safetensors, gzip, bytes), changed once or a few times."""
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        change = random.choice(_CHANGES[kind])
        try:
            data = change(data, random)
        except Exception:  # what was changed before may be no such file any more
            data = flip(data, random)
    return data


def replace_file(path: Path, random: Random) -> str:
    """Put something that is no such file in its place; what it is now."""
    path.unlink()
    kind = random.choice(("pipe", "folder", "device", "endless", "loop", "gone", "empty", "dangling"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind != "gone":
        targets = {"device": "/dev/tty", "endless": "/dev/zero", "loop": path.name, "dangling": "no/such/file"}
        path.symlink_to(targets[kind])
    return kind


# Bytes ---------------------------------------------------------------------------------------------------------------


def flip(data: bytes, random: Random) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def truncate(data: bytes, random: Random) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def insert(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data) + 1)
    piece = random.choice(
        (random.randbytes(9), b"\xff\xfe", b"\0" * 20, b"[" * 5000, b"{" * 50, b"\xef\xbb\xbf", b"\x1b")
    )
    return data[:at] + piece + data[at:]


def repeat(data: bytes, random: Random) -> bytes:
    begin = random.randrange(len(data) + 1)
    end = min(len(data), begin + random.choice((1, 10, 100, 1000)))
    return data[:end] + data[begin:end] * random.choice((1, 2, 50)) + data[end:]


def enlarge(data: bytes, random: Random) -> bytes:
    """Replace one number in a text by a hostile one."""
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", data))
    if not numbers:
        return flip(data, random)
    match = random.choice(numbers)
    new = random.choice((*map(str, HOSTILE_NUMBERS), DIGITS, "1" + "0" * 30, "NaN", "Infinity", "1e999", ".nan"))
    return data[: match.start()] + new.encode() + data[match.end() :]


def swap_lines(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at, other = random.randrange(len(lines)), random.randrange(len(lines))
    lines[at] = random.choice((lines[other], b"", b" " + lines[at], lines[at] + b"\n" + lines[at], b"\t" + lines[at]))
    return b"\n".join(lines)


# Trees ---------------------------------------------------------------------------------------------------------------


def edit_tree(value: Any, random: Random) -> Any:
    """The value with one place of it changed."""
    places = list(_places(value))
    if not places:
        return _hostile(random)
    container, key = random.choice(places)
    how = random.randrange(7)
    if how == 0:
        del container[key]
    elif how == 1 and isinstance(container, dict):
        container[random.choice(HOSTILE_TEXTS)] = container.pop(key)
    elif how == 2:
        container[key] = [container[key]] * random.choice((1, 2, 40))
    elif how == 3:
        other, place = random.choice(places)
        container[key] = json.loads(json.dumps(other[place]))
    elif how == 4 and isinstance(container, dict):
        container[random.choice(("extra", "", "type", "messages", *HOSTILE_TEXTS[:3]))] = _hostile(random)
    else:
        container[key] = _hostile(random)
    return value


def _hostile(random: Random) -> Any:
    return random.choice((random.choice(HOSTILE_VALUES), random.choice(HOSTILE_NUMBERS), random.choice(HOSTILE_TEXTS)))


def _places(value: Any) -> Any:
    stack = [value]
    while stack:
        item = stack.pop()
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, child in pairs:
            yield item, key
            stack.append(child)


def edit_json(data: bytes, random: Random) -> bytes:
    value = edit_tree(json.loads(data), random)
    return json.dumps(value, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass")


def edit_jsonl(data: bytes, random: Random) -> bytes:
    lines = data.split(b"\n")
    at = random.randrange(len(lines))
    lines[at] = edit_json(lines[at] or b"{}", random)
    return b"\n".join(lines)


def edit_yaml(data: bytes, random: Random) -> bytes:
    value = edit_tree(yaml.safe_load(data), random)
    return yaml.safe_dump(value, default_flow_style=random.choice((True, False, None))).encode("utf-8", "replace")


def twice(data: bytes, random: Random) -> bytes:
    """A key of a JSON object given twice."""
    keys = list(re.finditer(rb'"[^"\\]{1,60}":', data))
    if not keys:
        return flip(data, random)
    match = random.choice(keys)
    return data[: match.start()] + match[0] + b" 1, " + data[match.start() :]


def alias(data: bytes, random: Random) -> bytes:
    """An anchor or an alias somewhere in a YAML file."""
    places = [match.end() for match in re.finditer(rb": |\[|, |- ", data)]
    if not places:
        return flip(data, random)
    at = random.choice(places)
    piece = random.choice(
        (b"&a ", b"*a ", b"&int8 ", b"*int8 ", b"*a, ", b"!!python/name:os.system ", b"!!int ", b"<<: *a\n")
    )
    return data[:at] + piece + data[at:]


def edit_header(data: bytes, random: Random) -> bytes:
    """The header of a safetensors file edited, or its length made another."""
    (size,) = struct.unpack("<Q", data[:8])
    if random.random() < 0.2:
        return struct.pack("<Q", random.choice((0, 2, size - 1, size + 1, 2**31, 2**63, 2**64 - 1))) + data[8:]
    header = data[8 : 8 + size]
    parsed = json.loads(header)
    inner = parsed.get("__metadata__", {}).get("quantaudit")
    if inner is not None and random.random() < 0.8:
        parsed["__metadata__"]["quantaudit"] = edit_json(inner.encode(), random).decode("utf-8", "replace")
    else:
        parsed = edit_tree(parsed, random)
    text = json.dumps(parsed).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


def edit_gzip(data: bytes, random: Random) -> bytes:
    return gzip.compress(edit_jsonl(gzip.decompress(data), random), mtime=0)


Change = Callable[[bytes, Random], bytes]
_BYTES: tuple[Change, ...] = (flip, truncate, insert, repeat)
_TEXT: tuple[Change, ...] = (*_BYTES, enlarge, swap_lines)
_CHANGES: dict[str, tuple[Change, ...]] = {
    "bytes": _BYTES,
    "text": _TEXT,
    "json": (*_TEXT, twice, *[edit_json] * 9),
    "jsonl": (*_TEXT, twice, *[edit_jsonl] * 9),
    "yaml": (*_TEXT, alias, *[edit_yaml] * 9),
    "safetensors": (*_BYTES, *[edit_header] * 8),
    "gzip": (*_BYTES, edit_gzip, edit_gzip),
}
