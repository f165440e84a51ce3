"""Card → card.json, card.html and card.md with its images. Reads nothing but the card and the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from markupsafe import Markup

from quantaudit.card.schema import Card, dump_card
from quantaudit.card.templates import html_environment, markdown_environment, run, security_policy
from quantaudit.card.text import USUAL_LEVEL
from quantaudit.card.vega import scripts
from quantaudit.card.vega.renderer import ChartRenderer
from quantaudit.card.views.answers import answers, sizes, sizes_note
from quantaudit.card.views.card_view import CardView
from quantaudit.card.views.group_table import columns
from quantaudit.card.views.inspector import inspections
from quantaudit.card.views.inspector import packed as packed_inspections
from quantaudit.common.outputs.file_set import file_set

_LIMITS = {
    "finding_limit": 12,
    "group_limit": 15,
    "brief_limit": 8,
    "unmeasured_limit": 20,
    "layer_limit": 12,
    "peak_limit": 10,
    "leading_schemes": 2,
}
PAGES = ("card.html", "card.md", "assets/")
"""What a card is rendered as, below its folder."""
_NOTHING: Mapping[str, bytes] = {}
Specifications: TypeAlias = dict[str, dict[str, Any]]
"""Chart name → Vega-Lite specification."""


@dataclass(frozen=True, slots=True)
class DrawnCard:
    """A card with what is derived from it once for all its pages. specs: its charts, by name."""

    view: CardView
    specs: Specifications

    @classmethod
    def of(cls, card: Card | DrawnCard) -> DrawnCard:
        """The same where it has been drawn already."""
        if isinstance(card, DrawnCard):
            return card
        view = CardView(card)
        return cls(view=view, specs=_specifications(view))


def render_html(card: Card | DrawnCard, template_dir: Path | None = None) -> str:
    """One offline page. Files of `template_dir` replace the shipped templates of the same name.

    Raises FormatError for a missing folder or a template that does not compile or run.
    """
    return _page(DrawnCard.of(card), template_dir, scripts.bundle)


def render_markdown(card: Card | DrawnCard, template_dir: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """A README section and the images it shows, {'assets/peaks_by_layer.png': PNG bytes, …}.

    Raises FormatError like `render_html`.
    """
    from quantaudit.card.vega.image import png

    drawn = DrawnCard.of(card)
    section, shown = _section(drawn, template_dir)
    return section, {path: png(drawn.specs[name]) for path, name in shown.items()}


def _page(drawn: DrawnCard, template_dir: Path | None, bundle: Callable[[], str]) -> str:
    from quantaudit.card.charts import theme

    environment = html_environment(template_dir)
    page_scripts = [Markup(script) for script in (bundle(), run(environment, "card.js.j2", {}))]
    context = _context(drawn.view) | {
        "answers": answers(drawn.view),
        "inspections": packed_inspections(inspections(drawn.view)),
        "inspector_chart": _inspector_chart(drawn.view),
        "sizes": sizes(drawn.view.card),
        "sizes_note": sizes_note(drawn.view.card),
        "usual_level": USUAL_LEVEL,
        "group_columns": [asdict(column) for column in columns(drawn.view)],
        "charts": {name: packed(spec) for name, spec in drawn.specs.items()},
        "paper": theme.paper("currentColor", theme.FAINT, None),
        "scripts": page_scripts,
        "security_policy": security_policy(page_scripts),
    }
    return run(environment, "card.html.j2", context)


def _section(drawn: DrawnCard, template_dir: Path | None) -> tuple[str, dict[str, str]]:
    """A README section, and the names of the charts that it shows as images, by path."""
    paths = {name: Markup(f"assets/{name}.png") for name in drawn.specs}
    context = _context(drawn.view) | {"charts": drawn.specs, "assets": paths}
    section = run(markdown_environment(template_dir), "card.md.j2", context)
    return section, {str(path): name for name, path in paths.items() if path in section}


def write_card(
    card: Card,
    out: Path,
    template_dir: Path | None = None,
    *,
    others: Mapping[str, bytes] = _NOTHING,
    source: Path | None = None,
    renderer: ChartRenderer | None = None,
) -> list[Path]:
    """Write card.json, card.html, card.md and assets/ below `out`; the paths written, in that order.

    others: files that belong to the card, by name. source: where the card was read from; where that is `out` itself,
    its card.json stays as it is. renderer: one that has been started already. Everything is rendered before the first
    file appears, and all change as one. Raises FormatError (template) and OutputError (place).
    """
    files = card_files(card, template_dir) if renderer is None else _drawn_files(card, template_dir, renderer)
    target = out / "card.json"
    if source is not None and target.exists() and target.samefile(source):
        del files[target.name]
    with file_set(out) as new:
        for name, data in {**files, **others}.items():
            new.write(name, data)
    return [out / name for name in files]


def card_files(card: Card, template_dir: Path | None = None) -> dict[str, bytes]:
    """Everything that a card is written as, by name below its folder: card.json, its pages, and their images.

    A worker draws images meanwhile, from before it is known which ones are shown. Raises FormatError like
    `render_html`.
    """
    with ChartRenderer() as renderer:
        return _drawn_files(card, template_dir, renderer)


def _drawn_files(card: Card, template_dir: Path | None, renderer: ChartRenderer) -> dict[str, bytes]:
    drawn = DrawnCard.of(card)
    images = renderer.draw(drawn.specs)
    section, shown = _section(drawn, template_dir)
    for name in drawn.specs.keys() - shown.values():
        images[name].cancel()
    page = _page(drawn, template_dir, renderer.bundle.result)
    texts = {"card.json": dump_card(card), "card.html": page, "card.md": section}
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    return files | {path: images[name].result() for path, name in shown.items()}


def _inspector_chart(view: CardView) -> dict[str, Any] | None:
    """The one specification that draws every tensor's distribution; None where the card holds none."""
    from quantaudit.card.charts import distribution
    from quantaudit.card.charts.draw import drawn

    return drawn(distribution.chart, view)


def packed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification whose rows name their fields once and not each; the page undoes it.

    [{"x": 1, "y": 2}, …] becomes {"fields": ["x", "y"], "rows": [[1, 2], …]}.
    """
    return {**spec, "datasets": {name: _packed_rows(rows) for name, rows in spec.get("datasets", {}).items()}}


def _packed_rows(rows: Any) -> Any:
    """As they are where they have not the same fields in the same order."""
    fields = list(rows[0]) if rows else []
    if not fields or any(list(row) != fields for row in rows):
        return rows
    return {"fields": fields, "rows": [list(row.values()) for row in rows]}


def _specifications(view: CardView) -> Specifications:
    from quantaudit.card.charts.draw import specifications

    return specifications(view)


def _context(view: CardView) -> dict[str, Any]:
    """What all templates see in addition to charts."""
    from quantaudit.card.charts import drift_by_layer, error_by_granularity

    return _LIMITS | {
        "card": view.card,
        "view": view,
        "granularity_reading": error_by_granularity.reading(view),
        "drift_reading": drift_by_layer.reading(view.card),
        "headroom": headroom(view.card.peak.fp16_headroom),
    }


def headroom(factor: float | None) -> str:
    """Whether the residual stream fits FP16, in a sentence. factor: 65,504 over its largest peak; None without one."""
    if factor is None:
        return "The residual stream has no finite peak."
    if factor < 1:
        return "The residual stream overflows FP16: run this model in BF16 or FP32."
    return "The largest residual peak fits below FP16’s end, 65,504."
