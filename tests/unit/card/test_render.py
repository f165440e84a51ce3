"""The three files of a card: complete, stable, and inert whatever the card says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from quantaudit.card import text
from quantaudit.card.charts import error_by_granularity
from quantaudit.card.render import DrawnCard, packed, render_html, render_markdown, write_card
from quantaudit.card.schema import Card, load_card
from quantaudit.card.views.card_view import CardView
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError
from quantaudit.simulate.records import GranularityRow
from tests.card_factory import HOSTILE_TOKENS, STATIC, make_card, make_site
from tests.large_card import large_card
from tools.card_schema import schema_json

ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG\r\n\x1a\n"
PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script><!--",
    '"><img src=x onerror=alert(1)>',
    "' onload=alert(1) x='",
    "`x` | y",
    "a\n\n# head\n\n- item\n\n    code",
    "- ",
    "1. ",
    "> ",
    "](javascript:alert(1)) ![x](http://evil.example/x.png) ",
    "{{ 7 * 7 }}{% raw %}",
    "\u202e\u2066",
    "**b** _i_ ~~s~~ $$x$$ \\",
    "<!-- ",
    "&lt;b&gt;",
)
_KEEP = {
    "schema_version",
    "nature",
    "status",
    "severity",
    "tap",
    "kind",
    "outcome",
    "predictor",
    "ranked_by",
    "special_tokens",
    "cause",
    "classes",
    "strategy",
    "arithmetic",
    "products",
}


@pytest.fixture(scope="module")
def card() -> Card:
    return make_card()


@pytest.fixture(scope="module")
def page(card: Card) -> str:
    return render_html(card)


@pytest.fixture(scope="module")
def section(card: Card) -> str:
    return render_markdown(card)[0]


def poison(value: Any, payload: str, key: str = "") -> Any:
    """Every text of a card, names and keys included, with `payload` before it; relations between names hold."""
    if isinstance(value, str):
        # The scope "all" selects readings; every other scope is a name.
        return value if key in _KEEP or (key, value) == ("scope", "all") else payload + value
    if isinstance(value, list):
        return [poison(item, payload, key) for item in value]
    if isinstance(value, dict):
        free = key in {"domains", "files", "packages", "timings"}
        return {(payload + name if free else name): poison(item, payload, name) for name, item in value.items()}
    return value


def hostile_card(payload: str) -> Card:
    return Card.model_validate(poison(make_card().model_dump(), payload))


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # Prose may gain inline code, which is no structure.
        if tag != "code":
            self.tags.append((tag, tuple(name for name, _ in attrs)))


def structure(html: str) -> list[tuple[str, tuple[str, ...]]]:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    return parser.tags


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_card_changes_the_structure_of_the_page(payload: str, page: str) -> None:
    assert structure(render_html(hostile_card(payload))) == structure(page)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_text_of_a_card_changes_the_structure_of_the_section(payload: str, section: str) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    hostile = render_markdown(hostile_card(payload))[0]
    assert structure(parser.render(hostile)) == structure(parser.render(section))


def test_addresses_in_a_card_do_not_become_links(section: str) -> None:
    hostile = render_markdown(hostile_card("https://evil.example www.evil.example me@evil.example "))[0]
    prose = re.sub(r"`[^`]*`", "", hostile)
    assert "://" not in prose.replace("&#8288;://", "")
    assert "www." not in prose
    assert "@" not in prose.replace("&#8288;@", "")


def test_hostile_tokens_are_shown_as_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\\u202egnp.exe" in page
    assert "\u202e" not in page
    assert "{{ 7 * 7 }}" in page
    assert "<script>alert(1)" not in page


@pytest.mark.parametrize("token", HOSTILE_TOKENS)
def test_each_token_survives_in_tables(token: str, card: Card) -> None:
    overall = card.peak.overall
    assert overall is not None
    changed = overall.model_copy(update={"token": token})
    hostile = card.model_copy(update={"peak": card.peak.model_copy(update={"overall": changed})})
    row = next(line for line in render_markdown(hostile)[0].splitlines() if line.startswith("| largest activation"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 8


def test_only_known_scripts_may_run_and_nothing_may_load(page: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in unescape(policy[1]).split(";")}
    assert rules["default-src"] == ["'none'"]
    assert rules["img-src"] == ["data:"]
    assert len(rules["script-src"]) == page.count("<script>") == 2
    assert all(source.startswith("'sha256-") for source in rules["script-src"])
    assert not re.search(r'(?:src|href)="(?!#|data:,)', page.split("<script>")[0])


def test_page_tells_whether_where_why_and_what_to_do(page: str, card: Card) -> None:
    head = page[: page.index('id="peaks"')]
    for verdict in card.verdict.schemes:
        assert verdict.title in head
        assert verdict.status in head
        assert verdict.reason in head
        assert verdict.remedy in head
        assert all(group.group in head for group in verdict.worst_groups)
    assert "17.2 → 46.9" in head
    assert "53.1%" in head


def test_sections_come_in_order(page: str) -> None:
    expected = (
        "verdict answers findings peaks stability damage groups domains frontier advice verification landscape coverage"
    )
    expected += " provenance glossary"
    assert " ".join(re.findall(r'<section[^>]*id="(\w+)"', page)) == expected


def test_nulls_are_dashes(card: Card) -> None:
    empty = card.model_copy(
        update={
            "simulation": None,
            "sites": [make_site("layers.0.output", "residual", 0, None)],
            "peak": card.peak.model_copy(update={"overall": None, "quantized": None, "fp16_headroom": None}),
            "correlation": [],
            "findings": [],
            "stability": None,
            "places": None,
            "advice": [],
            "verification": [],
            "verdict": card.verdict.model_copy(update={"schemes": []}),
        }
    )
    html, (markdown, assets) = render_html(empty), render_markdown(empty)
    assert "No quantization scheme was judged" in html
    assert "No quantization was simulated" in html
    assert "None" not in html.split("<script>")[0]
    assert "None" not in markdown
    assert assets == {}


def test_the_table_of_groups_names_the_cause(card: Card, page: str) -> None:
    assert ">cause<" in page
    assert card.simulation is not None
    bare = card.model_copy(update={"simulation": card.simulation.model_copy(update={"granularity": []})})
    assert ">cause<" not in render_html(bare)
    first, second, third = (line.group for line in CardView(card).groups[:3])
    causes: list[tuple[str, Any]] = [(first, "massive token"), (second, "either"), (third, "neither")]
    rows = [
        GranularityRow(group=group, layer=0, per_tensor=1.0, per_token=0.1, per_channel=0.1, cause=cause)
        for group, cause in causes
    ]
    changed = card.model_copy(update={"simulation": card.simulation.model_copy(update={"granularity": rows})})
    assert [line.cause for line in CardView(changed).groups[:4]] == ["massive token", "token or channel", None, None]
    lines = [line for line in render_markdown(changed)[0].splitlines() if line.startswith(f"| `{first}` |")]
    assert [row.endswith(" massive token |") for row in lines] == [True, True]
    cells = re.findall(
        r'<tr><th scope="row"><code>([^<]+)</code></th><td class="text">([^<]+)</td>', render_html(changed)
    )
    assert dict(cells)[first] == "massive token"
    assert dict(cells)[third] == "—"


def test_the_section_tells_why_one_scale_is_too_coarse(card: Card, section: str) -> None:
    worst = CardView(card).granularities[0]
    assert text.markdown(error_by_granularity.reading(CardView(card))) in section
    lines = [line for line in section.splitlines() if line.startswith(f"| `{worst.group}` |")]
    errors = [text.relative_error(value) for value in (worst.per_tensor, worst.per_token, worst.per_channel)]
    assert lines[-1] == f"| `{worst.group}` | {' | '.join(errors)} | massive token |"


def test_groups_that_were_simulated_alone_show_their_kl_beside_the_price(card: Card, page: str, section: str) -> None:
    assert "KL alone" not in page + section
    assert card.simulation is not None
    first, second = (line.group for line in CardView(card).groups[:2])
    scores = {first: {"kl": 0.4321, "kl_stderr": 0.0567, "sampled": True}, second: {"kl": 0.0098}}
    groups = [
        row.model_copy(update=scores[row.group] if row.scheme == STATIC and row.group in scores else {})
        for row in card.simulation.groups
    ]
    changed = card.model_copy(update={"simulation": card.simulation.model_copy(update={"groups": groups})})
    html, markdown = render_html(changed), render_markdown(changed)[0]
    table = re.search(r'<section id="groups">.*?</table>', html, re.DOTALL)
    assert table is not None
    header = re.findall(r"<th [^>]*>([^<]+)</th>", table[0].split("</thead>")[0])
    rows = [re.findall(r"<td[^>]*>([^<]+)</td>", line) for line in table[0].splitlines() if "<tr><th" in line]
    place = header.index("KL alone, nats (simulated)")
    assert header[place - 1] == "price, nats (estimate)"
    assert [row[place - 1] for row in rows[1:4]] == ["0.432", "0.00980", "—"]
    assert f"2 of {len(CardView(card).groups)} groups simulated alone" in html
    assert "Correlations rest on 1 of them" in html
    assert re.search(r"<td>0\.432</td><td>0\.0567</td></tr>", html)
    lines = [line for line in markdown.splitlines() if line.startswith(f"| `{first}` |")]
    assert [" 0.432 |" in line for line in lines] == [True, False]
    assert f"for 2 of {len(CardView(card).groups)} groups" in markdown


def test_markdown_is_a_section_with_relative_images(card: Card, section: str) -> None:
    assert section.startswith("## Activation card\n")
    assert not re.search(r"^# ", section, re.MULTILINE)
    _, assets = render_markdown(card)
    assert list(assets) == re.findall(r"\]\((assets/[a-z_]+\.png)\)", section)
    assert all(data.startswith(PNG) for data in assets.values())
    assert "\n\n\n" not in section


def test_rows_of_a_chart_are_packed_without_loss(card: Card) -> None:
    specs = DrawnCard.of(card).specs
    short = {name: packed(spec) for name, spec in specs.items()}
    assert len(json.dumps(short)) < 0.75 * len(json.dumps(specs))
    for name, spec in specs.items():
        assert {**short[name], "datasets": None} == {**spec, "datasets": None}
        for dataset, rows in spec["datasets"].items():
            found = short[name]["datasets"][dataset]
            unpacked = (
                [dict(zip(found["fields"], row, strict=True)) for row in found["rows"]]
                if isinstance(found, dict)
                else found
            )
            assert unpacked == rows


def test_rows_of_different_fields_stay_as_they_are() -> None:
    spec = {"datasets": {"odd": [{"x": 1}, {"y": 2}], "empty": []}}
    assert packed(spec) == spec


@pytest.mark.parametrize(("experts", "most"), [(0, 2e6), (128, 4e6)])
def test_a_page_of_64_layers_under_ten_schemes_stays_small(experts: int, most: float) -> None:
    assert len(render_html(large_card(experts)).encode("utf-8")) < most


def test_equal_cards_give_equal_bytes(card: Card, page: str) -> None:
    assert render_html(make_card()) == page
    assert render_markdown(make_card()) == render_markdown(card)


def test_write_card_leaves_all_files(card: Card, tmp_path: Path) -> None:
    written = write_card(card, tmp_path / "out")
    names = [path.relative_to(tmp_path / "out").as_posix() for path in written]
    assert names[:3] == ["card.json", "card.html", "card.md"]
    assert set(names[3:]) == {
        f"assets/{name}.png" for name in ("peaks_by_layer", "peak_against_damage", "layer_map", "advice_curve")
    }
    assert all(path.stat().st_size > 0 for path in written)
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file()) == sorted(written)
    assert load_card(tmp_path / "out" / "card.json") == card


def test_templates_are_overridden_file_by_file(card: Card, tmp_path: Path) -> None:
    (tmp_path / "card.css.j2").write_text("body { color: #facade; }", encoding="utf-8")
    changed = render_html(card, tmp_path)
    assert "#facade" in changed
    assert card.verdict.headline in changed
    assert "#facade" not in render_html(card)


def test_an_overridden_script_may_run(card: Card, tmp_path: Path) -> None:
    (tmp_path / "card.js.j2").write_text('console.log("mine");', encoding="utf-8")
    changed = render_html(card, tmp_path)
    assert 'console.log("mine");' in changed
    assert changed.count("sha256-") == 2


def test_output_of_a_foreign_template_is_escaped_too(card: Card, tmp_path: Path) -> None:
    (tmp_path / "card.md.j2").write_text("{{ card.model.name }}", "utf-8")
    hostile = card.model_copy(update={"model": card.model.model_copy(update={"name": "<b>|x"})})
    assert render_markdown(hostile, tmp_path)[0] == "&#60;b&#62;&#124;x"


def test_a_missing_template_folder_is_an_error(card: Card, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such folder") as caught:
        render_html(card, tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")


@pytest.mark.parametrize(
    ("body", "message", "line"),
    [
        ("ok\n{% if %}", "does not compile", 2),
        ("ok\n\n{{ nobody.knows }}", "does not run", 3),
        ("{{ none | size }}", "does not run", 1),
    ],
)
def test_a_broken_template_names_its_line(card: Card, tmp_path: Path, body: str, message: str, line: int) -> None:
    (tmp_path / "card.md.j2").write_text(body, encoding="utf-8")
    with pytest.raises(FormatError, match=message) as caught:
        render_markdown(card, tmp_path)
    assert caught.value.where == f"{tmp_path / 'card.md.j2'}:{line}"


def test_templates_ship_with_the_package() -> None:
    assert (resource_dir("templates") / "card.html.j2").is_file()


def test_importing_render_is_light() -> None:
    script = (
        "import sys, quantaudit.card.render; print([m for m in ('torch', 'altair', 'vl_convert') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_rendering_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from tests.card_factory import make_card\n"
        "from quantaudit.card.render import render_html, render_markdown\n"
        "render_html(make_card()); render_markdown(make_card())"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_the_published_json_schema_is_current() -> None:
    published = (ROOT / "docs" / "card.schema.json").read_text(encoding="utf-8")
    assert published == schema_json(), "run `python -m tools.card_schema docs/card.schema.json`"


def test_the_json_schema_requires_every_part() -> None:
    schema = json.loads(schema_json())
    assert set(schema["required"]) == set(Card.model_fields)


@pytest.mark.parametrize("long", ["x" * 10_000, "x " * 5_000])
def test_no_name_of_ten_thousand_characters_fills_a_page(card: Card, long: str) -> None:
    model = card.model.model_copy(update={"name": long})
    sites = [site.model_copy(update={"name": f"{long}.input", "module": long}) for site in card.sites[:1]]
    finding = card.findings[0].model_copy(update={"module": long, "message": f"`{long}` breaks"})
    named = card.model_copy(
        update={"model": model, "sites": [*sites, *card.sites[1:]], "findings": [finding, *card.findings[1:]]}
    )
    page, text = render_html(named), render_markdown(named)[0]
    shown = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    for given in (shown, text):
        assert max(map(len, re.findall("(?:x ?){50,}", given))) <= 1000
    assert '<h1><span title="x' in page
    assert len(re.search("<title>(.*)</title>", page)[1]) < 200
