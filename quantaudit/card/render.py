"""Card → card.json, card.html and card.md with its images. Reads nothing but the card and the templates.

Everything a template prints passes one gate (`finalize`): in HTML it is made visible and then escaped by Jinja, in
Markdown it is escaped for Markdown. Only what this module marks as safe (scripts, inline code) passes unchanged.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import traceback
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from quantaudit.card import text
from quantaudit.card.charts import data as chart_data
from quantaudit.card.schema import Card, dump_card
from quantaudit.card.sections import granularity
from quantaudit.card.sections.advice import advised
from quantaudit.card.views import groups as rows
from quantaudit.common.files import write_bytes, write_text
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError

_IMAGE_WIDTH, _IMAGE_SCALE = 700, 2
_LIMITS = {"finding_limit": 12, "group_limit": 15, "brief_limit": 8, "unmeasured_limit": 20, "layer_limit": 12}
_PEAK_LIMIT = 10
_SPECIAL_TOKENS = {"auto": "as deployed, with the chat template", "none": "none, nor a chat template"}
_HINT = "mend the template, or leave --template-dir out"
Specifications = dict[str, dict[str, Any]]
"""Chart name → Vega-Lite specification."""
_MARKS = {"READY": "✅", "READY WITH CARE": "⚠️", "NOT READY": "❌", "INCONCLUSIVE": "❔"}


def render_html(card: Card, template_dir: Path | None = None) -> str:
    """One offline page. Files of `template_dir` replace the shipped templates of the same name.

    Raises FormatError for a missing folder or a template that does not compile or run.
    """
    return _page(card, _specifications(card), template_dir)


def render_markdown(card: Card, template_dir: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """A README section and the images it shows, {'assets/peaks_by_layer.png': PNG bytes, …}.

    Raises FormatError like `render_html`.
    """
    return _section(card, _specifications(card), template_dir)


def _page(card: Card, specs: Specifications, template_dir: Path | None) -> str:
    from quantaudit.card.charts import theme as looks

    environment = _environment(template_dir, _html_output)
    environment.filters["prose"] = _html_prose
    page_script = _run(environment, "card.js.j2", {})
    scripts = [Markup(script) for script in (_vega_bundle(), page_script)]
    context = _context(card) | {
        "charts": specs,
        "paper": looks.paper("currentColor", looks.FAINT, None),
        "scripts": scripts,
        "security_policy": _security_policy(scripts),
    }
    return _run(environment, "card.html.j2", context)


def _section(card: Card, specs: Specifications, template_dir: Path | None) -> tuple[str, dict[str, bytes]]:
    environment = _environment(template_dir, _markdown_output)
    environment.filters |= {"code": _markdown_code, "prose": _markdown_prose}
    paths = {name: Markup(f"assets/{name}.png") for name in specs}
    page = _run(environment, "card.md.j2", _context(card) | {"charts": specs, "assets": paths})
    return page, {str(paths[name]): _png(spec) for name, spec in specs.items() if paths[name] in page}


def write_card(card: Card, out: Path, template_dir: Path | None = None) -> list[Path]:
    """Write card.json, card.html, card.md and assets/ below `out`; the paths written, in that order.

    Everything is rendered before the first file appears. Raises FormatError (template) and OutputError (place).
    """
    specs = _specifications(card)
    page = _page(card, specs, template_dir)
    section, images = _section(card, specs, template_dir)
    texts = {"card.json": dump_card(card), "card.html": page, "card.md": section}
    for name, content in texts.items():
        write_text(out / name, content)
    for name, data in images.items():
        write_bytes(out / name, data)
    return [out / name for name in (*texts, *images)]


def _specifications(card: Card) -> Specifications:
    from quantaudit.card.charts import all_charts as charts

    return {name: charts.specification(chart) for name, chart in charts.all_charts(card).items()}


def _context(card: Card) -> dict[str, Any]:
    """What both templates see besides charts."""
    return _LIMITS | {
        "card": card,
        "static": rows.static_scheme(card),
        "dynamic": rows.dynamic_scheme(card),
        "titles": rows.scheme_titles(card),
        "serious": rows.findings_of(card, "error", "warning"),
        "remarks": rows.findings_of(card, "info"),
        "groups": rows.group_lines(card),
        "singles": rows.single_lines(card),
        "peaks_quantized": rows.peak_lines(card, quantized=True)[:_PEAK_LIMIT],
        "peaks_other": rows.peak_lines(card, quantized=False)[:_PEAK_LIMIT],
        "stable_peaks": rows.stable_peaks(card),
        "expert_lines": rows.expert_lines(card),
        "expert_peaks": sorted(rows.expert_lines(card), key=lambda line: (-(line.amax or 0.0), line.layer)),
        "unmeasured": rows.unmeasured_lines(card),
        "undrawn": rows.undrawn_sites(card),
        "granularities": granularity.worst(card),
        "granularity_reading": granularity.reading(card),
        "causes": rows.causes(card),
        "drift_reading": chart_data.drift_reading(card),
        "landscape": rows.landscape_lines(card),
        "headroom": _headroom(card.peak.fp16_headroom),
        "provenance": _provenance(card),
    }


def _headroom(factor: float | None) -> str:
    if factor is None:
        return "The residual stream has no finite peak."
    if factor < 1:
        return "The residual stream overflows FP16: run this model in BF16 or FP32."
    return "The largest residual peak fits below FP16’s end, 65,504."


def _provenance(card: Card) -> list[tuple[str, str]]:
    model, corpus, environment = card.model, card.corpus, card.environment
    pairs = [
        ("created", card.created),
        ("model", model.spec),
        ("revision", model.revision or text.ABSENT),
        ("fingerprint of the weights", model.fingerprint),
        ("SHA-256 of the configuration", model.config_sha256),
        ("loading", "; ".join(model.notes) or "as saved"),
        (
            "corpus",
            f"{corpus.name}: {text.sample_count(corpus)}, {corpus.tokens:,} tokens, {corpus.truncated:,} truncated"
            + (f", {corpus.images:,} with images" if corpus.images else ""),
        ),
        ("revision of the corpus", corpus.revision or text.ABSENT),
        ("SHA-256 of the corpus", corpus.sha256),
        ("special tokens", _SPECIAL_TOKENS[corpus.special_tokens]),
        ("calibration", f"{corpus.calibration.samples:,} samples, {corpus.calibration.tokens:,} tokens"),
        ("evaluation", f"{corpus.evaluation.samples:,} samples, {corpus.evaluation.tokens:,} tokens"),
        ("seeds", f"corpus {corpus.seed}, run {environment.seed}"),
        (
            "forward passes",
            f"{model.dtype}, {text.PRODUCTS[environment.arithmetic]}, {environment.attention} attention, "
            f"{environment.device}",
        ),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
        ("Python", f"{environment.python} on {environment.platform}"),
        ("time", ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in environment.timings.items()) or text.ABSENT),
    ]
    if card.simulation:
        evaluation = card.simulation.evaluation
        simulated = f"{evaluation.tokens:,} tokens, at most {evaluation.max_tokens_per_sample:,} a sample"
        arithmetic = f"{evaluation.arithmetic}, {text.PRODUCTS[evaluation.products]}"
        pairs.append(("simulation", f"{simulated}, in {arithmetic}"))
    return pairs


def check_templates(folder: Path) -> None:
    """Raises FormatError where there is no such folder."""
    if not folder.is_dir():
        raise FormatError(
            "no such folder of templates", where=str(folder), hint="give --template-dir an existing folder"
        )


def _environment(template_dir: Path | None, finalize: Any) -> jinja2.Environment:
    folders = [resource_dir("templates")]
    if template_dir is not None:
        check_templates(template_dir)
        folders.insert(0, template_dir)
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder) for folder in folders]),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= _FILTERS
    return environment


def _html_output(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return text.ABSENT if value is None else text.visible(str(value))


def _markdown_output(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup(text.ABSENT if value is None else text.markdown(str(value)))


def _html_prose(value: str) -> Markup:
    parts = ((is_code, Markup.escape(text.visible(part))) for is_code, part in text.prose_parts(value))
    return Markup("").join(Markup("<code>{}</code>").format(part) if is_code else part for is_code, part in parts)


def _markdown_prose(value: str) -> Markup:
    parts = text.prose_parts(value)
    return Markup("".join(text.markdown_code(part) if is_code else text.markdown(part) for is_code, part in parts))


def _markdown_code(value: str) -> Markup:
    return Markup(text.markdown_code(value))


def _run(environment: jinja2.Environment, name: str, context: dict[str, Any]) -> str:
    try:
        return environment.get_template(name).render(context)
    except jinja2.TemplateSyntaxError as error:
        where = f"{error.filename or error.name or name}:{error.lineno}"
        raise FormatError(f"template does not compile: {error.message}", where=where, hint=_HINT) from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise FormatError(f"template does not run: {error}", where=_line_of(error, name), hint=_HINT) from error


def _line_of(error: Exception, name: str) -> str:
    """`file:line` of the innermost template frame; Jinja rewrites tracebacks so that they name template lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name


@functools.cache
def _vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that puts `vegaEmbed` on the window."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Inside a string or a regular expression "<\/" is "</" again, and the page's parser no longer sees an end tag.
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--").replace("\r", "")


def _security_policy(scripts: list[Markup]) -> str:
    """Nothing may load, and only these very scripts may run. Charts need inline styles."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes)
    rules = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _png(spec: dict[str, Any]) -> bytes:
    """The chart on white paper: a transparent one could not be read on a dark page."""
    import vl_convert

    from quantaudit.card.charts import theme as looks

    image: bytes = vl_convert.vegalite_to_png(
        spec | {"width": _IMAGE_WIDTH, "padding": 12},
        scale=_IMAGE_SCALE,
        config=looks.paper("#24292f", "#d0d7de", "#ffffff", looks.IMAGE_FONTS),
        allowed_base_urls=[],
    )
    return image


def _bar_width(fraction: float | None) -> str:
    """Percent for a CSS width, within 0 … 100 whatever the card says."""
    return f"{min(max(fraction or 0.0, 0.0), 1.0) * 100:.1f}"


def _factor(value: float | None) -> str:
    return text.ABSENT if value is None else f"{text.number(value)}×"


def _coefficient(value: float | None) -> str:
    return text.ABSENT if value is None else f"{value:.2f}".replace("-", text.MINUS)


_FILTERS: dict[str, Any] = {
    "number": text.number,
    "percent": text.percent,
    "decibels": text.decibels,
    "count": text.count,
    "size": text.size,
    "token": text.token,
    "factor": _factor,
    "coefficient": _coefficient,
    "bar_width": _bar_width,
    "sentence": text.sentence,
    "advised": advised,
    "share": granularity.share,
    "mark": _MARKS.__getitem__,
}
