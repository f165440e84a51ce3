"""Seeded generators of the built-in corpus's structured domain: documents, configuration, tables and server logs.

`python -m tools.generate_corpus` rewrites `structured.jsonl`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from html import escape
from pathlib import Path
from random import Random
from typing import Annotated, Any, Protocol
from uuid import UUID

import typer

from quantaudit.common.files import write_text
from quantaudit.corpus.load import BUILTIN

SEED = 20240229
OUTPUT = BUILTIN / "structured.jsonl"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split("|" if "|" in text else None))


FIRST = _words("Amara Björn Chloé Dmitri Esperanza Farid Grace Hiroshi Ingrid João Kwame Léa Małgorzata Nikhil Oluchi")
LAST = _words("Abiodun Bianchi Castro Dvořák Eriksen Fitzgerald García Haddad Ivanova Jensen Kowalski O'Neill")
CITIES = _words("Aarhus Bogotá Cork Daegu Essen Fès Gdańsk Hobart Izmir Jaipur Kraków Lomé Malmö Nagoya Oulu Porto")
GOODS = _words(
    "LED strip 5 m | merino socks (3 pairs) | M8 hex bolt | cast-iron pan 26 cm | rain barrel | wool blanket | desk"
    "| fountain pen | bicycle pump | USB-C cable 2 m | linen curtain | chess clock | espresso tamper | garden shears"
)
NOUNS = _words("ledger harbour index cache invoice parcel sensor archive queue voucher gateway roster snapshot tariff")
ADJECTIVES = _words("late partial duplicate northern quiet encrypted seasonal orphaned provisional nightly stale")
VERBS = _words("merged rejected archived replayed measured shipped indexed audited deferred translated")
SERVICES = _words("billing-api search-indexer mail-relay session-store image-proxy rate-limiter ledger-sync")
AGENTS = _words("curl/8.5.0 | Mozilla/5.0 (X11; Linux x86_64) Firefox/124.0 | ExampleBot/1.3 (+www.example.org)")


class Generator(Protocol):
    """Makes one text. size: how many records it has; its length is roughly proportional."""

    __name__: str

    def __call__(self, rng: Random, size: int = ...) -> str: ...


def _when(rng: Random) -> datetime:
    return datetime(2022, 1, 1) + timedelta(seconds=rng.randrange(86400 * 900), milliseconds=rng.randrange(1000))


def _uuid(rng: Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def _hex(rng: Random, digits: int) -> str:
    return f"{rng.getrandbits(4 * digits):0{digits}x}"


def _ip(rng: Random) -> str:
    # The three blocks set aside for documentation: no address in the corpus is anybody's.
    return f"{rng.choice(('192.0.2', '198.51.100', '203.0.113'))}.{rng.randrange(1, 255)}"


def _heavy(rng: Random, scale: float) -> float:
    # A heavy tail from plain arithmetic: log and exp may differ in the last bit between C libraries.
    u = rng.random()
    return scale * u / (1.001 - u)


def _person(rng: Random) -> tuple[str, str]:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    local = f"{first[0]}.{last}".lower().replace("'", "").encode("ascii", "ignore").decode()
    return f"{first} {last}", f"{local}{rng.randrange(100)}@example.org"


def _url(rng: Random) -> str:
    query = rng.choice(("", "", f"?page={rng.randrange(2, 90)}", f"?q={rng.choice(ADJECTIVES)}&lang=fr"))
    return f"https://{rng.choice(('www', 'api'))}.example.org/{'/'.join(rng.sample(NOUNS, rng.randrange(1, 4)))}{query}"


def _sentence(rng: Random) -> str:
    what, how, done, by = rng.choice(NOUNS), rng.choice(ADJECTIVES), rng.choice(VERBS), rng.choice(SERVICES)
    forms = (
        f"The {how} {what} was {done} twice before {by} noticed.",
        f"{rng.randrange(2, 400)} {how} {what} entries from {rng.choice(CITIES)} were {done} by {_person(rng)[0]}.",
        f"Since {_when(rng):%d %B %Y} every {what} is {done} on arrival; the {how} ones wait for {by}.",
        f"Why is the {what} {how}? Because {by} {done} it at {_when(rng):%H:%M}.",
    )
    return rng.choice(forms)


def _dump(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def json_document(rng: Random, size: int = 3) -> str:
    """An order with its lines, indented."""

    def line() -> dict[str, Any]:
        price, tags = round(_heavy(rng, 18), 2), rng.sample(ADJECTIVES, rng.randrange(3))
        box = {"mm": [rng.randrange(10, 2000) for _ in range(3)], "kg": rng.random()} if rng.random() < 0.5 else None
        return {"sku": _hex(rng, 6).upper(), "title": rng.choice(GOODS), "price": price, "tags": tags, "box": box}

    name, mail = _person(rng)
    customer = {"name": name, "email": mail, "returning": rng.random() < 0.5, "city": rng.choice(CITIES), "phone": None}
    order = {"order_id": _uuid(rng), "placed_at": _when(rng).isoformat() + "Z", "customer": customer}
    return _dump(order | {"notes": _sentence(rng), "lines": [line() for _ in range(size)]}, indent=2)


def json_lines(rng: Random, size: int = 5) -> str:
    """Telemetry events, one compact object a line; those of moving senders carry a track of longitudes."""

    def event() -> dict[str, Any]:
        head = {"ts": _when(rng).isoformat(), "svc": rng.choice(SERVICES), "n": rng.getrandbits(24)}
        lon = rng.random() * 340 - 170
        track = [round(lon + rng.random() / 50, 6) for _ in range(rng.randrange(3, 9))]
        extra = {rng.choice(NOUNS): rng.choice((True, None, -1, 0.5e-7, rng.choice(CITIES))), "ms": _heavy(rng, 12)}
        return head | rng.choice(({"trace": _hex(rng, 16), "attrs": extra}, {"lon": track}))

    return "\n".join(_dump(event(), separators=(",", ":")) for _ in range(size))


def yaml_config(rng: Random, size: int = 3) -> str:
    """A service's settings, with an anchor, comments, a block scalar and one of YAML's many booleans."""
    upstreams = "".join(
        f"""
  {name}:
    <<: *defaults
    url: {_url(rng)}
    weight: {rng.random():.3f}
    hosts: [{", ".join(_ip(rng) for _ in range(rng.randrange(1, 4)))}]
    enabled: {rng.choice(("yes", "no", "true", "~"))}"""
        for name in rng.sample(SERVICES, size)
    )
    return f"""# reviewed {_when(rng):%Y-%m-%d} by {_person(rng)[0]}
defaults: &defaults
  timeout: {rng.randrange(1, 60)}s
  tls: {{min_version: '1.2', ciphers: [{_hex(rng, 4)}, {_hex(rng, 4)}]}}
upstreams:{upstreams}
logging:
  level: {rng.choice(("INFO", "DEBUG"))}  # DEBUG only while {rng.choice(SERVICES)} is being moved
  format: "%(asctime)s [{_hex(rng, 4)}] %(message)s"
motd: |
  {_sentence(rng)}"""


def html_page(rng: Random, size: int = 2) -> str:
    """A page of articles with a search form and a small script."""
    title, ident = f"{rng.choice(CITIES)}: the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}", f"f{_hex(rng, 4)}"
    articles = "".join(
        f"""
    <article id="a-{_hex(rng, 4)}" class="card {rng.choice(ADJECTIVES)}">
      <h2>{escape(rng.choice(GOODS))} &amp; {rng.choice(NOUNS)}</h2>
      <p>{escape(_sentence(rng))} <a href="{escape(_url(rng))}">More</a></p>
      <img src="/img/{_hex(rng, 8)}.webp" width="{rng.randrange(200, 1200)}" alt="" loading="lazy">
    </article>"""
        for _ in range(size)
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head>
  <meta charset="utf-8"><title>{title}</title>
  <style>main {{ max-width: {rng.randrange(30, 70)}rem; color: #{_hex(rng, 6)} }}</style>
</head><body>
  <form id="{ident}" action="/{rng.choice(NOUNS)}"><input type="search" name="q" required></form>
  <main><h1>{title}</h1>{articles}
  </main>
  <script>document.getElementById("{ident}").addEventListener("submit", e => console.log(e.target.q.value));</script>
</body></html>"""


def csv_table(rng: Random, size: int = 8) -> str:
    """Orders of a shop, comma separated, some fields quoted."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(("order_no", "date", "customer", "email", "item", "qty", "total", "comment"))
    for number in range(size):
        remark = f'"{rng.choice(ADJECTIVES)}", see {rng.choice(NOUNS)}, no. {rng.randrange(99)}'
        sale = (rng.choice(GOODS), rng.randrange(1, 13), f"{_heavy(rng, 40):.2f}", rng.choice(("", "", remark)))
        table.writerow((10_400 + 7 * number, f"{_when(rng):%Y-%m-%d}", *_person(rng), *sale))
    return buffer.getvalue().rstrip("\n")


def csv_measurements(rng: Random, size: int = 10) -> str:
    """A logger's export: semicolons, decimal commas, a drifting series and gaps."""
    at, level = _when(rng).replace(minute=0), 100 * rng.random()
    out = [f"# station {rng.choice(CITIES)}; serial {_hex(rng, 8).upper()}", "time;level_cm;flow_m3s;temp_C;flag"]
    for _ in range(size):
        at, level = at + timedelta(minutes=10), level + 4 * rng.random() - 1.9
        values = (f"{level:.1f}", f"{_heavy(rng, 0.8):.4f}", f"{24 * rng.random() - 6:.2f}")
        shown = ("NaN" if rng.random() < 0.08 else value.replace(".", ",") for value in values)
        out.append(f"{at:%d.%m.%Y %H:%M};{';'.join(shown)};{rng.choice('0001A')}")
    return "\n".join(out)


def _trace(rng: Random, what: str) -> str:
    if rng.random() < 0.5:
        where = f'File "/opt/app/{what}.py", line {rng.randrange(20, 900)}, in {rng.choice(NOUNS)}'
        return f"Traceback (most recent call last):\n  {where}\n    row = rows[key]\nKeyError: '{_hex(rng, 12)}'"
    names = rng.sample(NOUNS, 3)
    frames = "\n".join(f"\tat org.example.{what}.{n.title()}({n.title()}.java:{rng.randrange(400)})" for n in names)
    return f"java.lang.IllegalStateException: {what} is closed\n{frames}\n\t... {rng.randrange(9, 60)} more"


def server_log(rng: Random, size: int = 8) -> str:
    """A service's log, with stack traces of Python and Java programs."""
    at, out = _when(rng), []
    for _ in range(size):
        at += timedelta(milliseconds=int(_heavy(rng, 900)))
        what, head = rng.choice(NOUNS), f"{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03d} [{rng.choice(SERVICES)}]"
        if rng.random() < 0.2:
            out += [f"{head} ERROR {what} not {rng.choice(VERBS)}: {_url(rng)}", _trace(rng, what)]
        else:
            key = rng.choice((_uuid(rng), _ip(rng), f"{rng.choice(NOUNS)}#{rng.randrange(10**6)}"))
            done = f"{rng.choice(('INFO', 'INFO', 'DEBUG', 'WARN'))} {rng.choice(VERBS)} {what}"
            out.append(f"{head} {done} for {key} in {_heavy(rng, 30):.1f} ms")
    return "\n".join(out)


def access_log(rng: Random, size: int = 6) -> str:
    """A web server's access log in the combined format."""
    at, out = _when(rng), []
    for _ in range(size):
        at += timedelta(seconds=int(_heavy(rng, 3)))
        request = f"{rng.choice(('GET', 'GET', 'POST', 'HEAD'))} {_url(rng).split('.org')[1]} HTTP/1.1"
        reply = f'{rng.choice((200, 200, 200, 304, 404, 502))} {int(_heavy(rng, 4000))} "-" "{rng.choice(AGENTS)}"'
        out.append(f'{_ip(rng)} - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "{request}" {reply}')
    return "\n".join(out)


def xml_document(rng: Random, size: int = 3) -> str:
    """An invoice with a namespace, attributes, escaped text and a CDATA section."""
    name, mail = _person(rng)
    items = "".join(
        f"""
    <inv:item no="{number}" vat="{rng.choice((7, 19, 25.5))}">
      <inv:name>{escape(rng.choice(GOODS))}</inv:name>
      <inv:price currency="EUR">{_heavy(rng, 25):.2f}</inv:price>
    </inv:item>"""
        for number in range(1, size + 1)
    )
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<inv:invoice xmlns:inv="urn:example:invoice:2" id="{_uuid(rng)}">
  <!-- {rng.choice(SERVICES)} --><inv:buyer mail="{mail}" since="{_when(rng):%Y-%m}">{escape(name)}</inv:buyer>
  <inv:items>{items}</inv:items>
  <inv:note><![CDATA[{_sentence(rng)} a < b && c]]></inv:note>
</inv:invoice>"""


def markdown_table(rng: Random, size: int = 4) -> str:
    """Release notes: prose, an aligned table of measurements and a checklist."""
    heading = f"## v{rng.randrange(4)}.{rng.randrange(20)}.{rng.randrange(9)} ({_when(rng):%Y-%m-%d})\n"
    table = ("| Component | Before, ms | After, ms | CPU |", "|:--|--:|--:|:-:|")
    body = (
        f"| `{name}` | {_heavy(rng, 80):,.1f} | {_heavy(rng, 60):,.1f} | {90 * rng.random() - 45:+.1f} % |"
        for name in rng.sample(SERVICES, size)
    )
    todo = (f"- [{rng.choice(' x')}] **{rng.choice(NOUNS)}**: [{rng.choice(VERBS)}]({_url(rng)})" for _ in range(size))
    return "\n".join((heading, _sentence(rng) + "\n", *table, *body, "", *todo))


# Each generator with the sizes of the rows it makes, in the order of the file.
PLAN: tuple[tuple[Generator, tuple[int, ...]], ...] = (
    (json_document, (1, 27)),
    (json_lines, (1, 3, 2)),
    (yaml_config, (1, 2, 2)),
    (html_page, (1, 2)),
    (csv_table, (1, 3)),
    (csv_measurements, (6,)),
    (server_log, (2, 5, 3)),
    (access_log, (1, 4)),
    (xml_document, (1, 2)),
    (markdown_table, (2, 4)),
)


def rows(seed: int = SEED) -> Iterator[dict[str, str]]:
    """The rows of the structured domain, in the order of their numbers."""
    planned = ((function, size) for function, sizes in PLAN for size in sizes)
    for number, (function, size) in enumerate(planned, start=1):
        # Each row has a generator of its own, so changing one row leaves the others as they are.
        text = function(Random(seed * 1000 + number), size)
        yield {"id": f"structured-{number:03d}", "domain": "structured", "language": "en", "text": text}


def structured_jsonl() -> str:
    """The file of the structured domain: one JSON object a line, in the order of the rows."""
    return "".join(_dump(row) + "\n" for row in rows())


def main(path: Annotated[Path, typer.Argument(help="File to write.")] = OUTPUT) -> None:
    """Write the structured domain of the built-in corpus."""
    write_text(path, structured_jsonl())


if __name__ == "__main__":
    typer.run(main)
