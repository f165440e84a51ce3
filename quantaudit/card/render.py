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
from typing import Any, TypeAlias

import jinja2
from markupsafe import Markup

from quantaudit.card import text
from quantaudit.card.schema import Card, dump_card
from quantaudit.card.sections.advice import advised
from quantaudit.card.views.card_view import CardView
from quantaudit.common.files import write_bytes, write_text
from quantaudit.common.resources import resource_dir
from quantaudit.errors import FormatError

_LIMITS = {
    "finding_limit": 12,
    "group_limit": 15,
    "brief_limit": 8,
    "unmeasured_limit": 20,
    "layer_limit": 12,
    "peak_limit": 10,
}
_SPECIAL_TOKENS = {"auto": "as deployed, with the chat template", "none": "none, nor a chat template"}
_HINT = "mend the template, or leave --template-dir out"
Specifications: TypeAlias = dict[str, dict[str, Any]]
"""Chart name → Vega-Lite specification."""
_MARKS = {"READY": "✅", "READY WITH CARE": "⚠️", "NOT READY": "❌", "INCONCLUSIVE": "❔"}


def render_html(card: Card, template_dir: Path | None = None) -> str:
    """One offline page. Files of `template_dir` replace the shipped templates of the same name.

    Raises FormatError for a missing folder or a template that does not compile or run.
    """
    view = CardView(card)
    return _page(view, _specifications(view), template_dir)


def render_markdown(card: Card, template_dir: Path | None = None) -> tuple[str, dict[str, bytes]]:
    """A README section and the images it shows, {'assets/peaks_by_layer.png': PNG bytes, …}.

    Raises FormatError like `render_html`.
    """
    view = CardView(card)
    return _section(view, _specifications(view), template_dir)


def write_card(card: Card, out: Path, template_dir: Path | None = None) -> list[Path]:
    """Write card.json, card.html, card.md and assets/ below `out`; the paths written, in that order.

    Everything is rendered before the first file appears. Raises FormatError (template) and OutputError (place).
    """
    view = CardView(card)
    specs = _specifications(view)
    page = _page(view, specs, template_dir)
    section, images = _section(view, specs, template_dir)
    texts = {"card.json": dump_card(card), "card.html": page, "card.md": section}
    for name, content in texts.items():
        write_text(out / name, content)
    for name, data in images.items():
        write_bytes(out / name, data)
    return [out / name for name in (*texts, *images)]


def _page(view: CardView, specs: Specifications, template_dir: Path | None) -> str:
    from quantaudit.card.charts import theme

    environment = _environment(template_dir, _html_output)
    environment.filters["prose"] = _html_prose
    page_script = _run(environment, "card.js.j2", {})
    scripts = [Markup(script) for script in (_vega_bundle(), page_script)]
    context = _context(view) | {
        "charts": specs,
        "paper": theme.paper("currentColor", theme.FAINT, None),
        "scripts": scripts,
        "security_policy": _security_policy(scripts),
    }
    return _run(environment, "card.html.j2", context)


def _section(view: CardView, specs: Specifications, template_dir: Path | None) -> tuple[str, dict[str, bytes]]:
    from quantaudit.card.charts.image import png

    environment = _environment(template_dir, _markdown_output)
    environment.filters |= {"code": _markdown_code, "prose": _markdown_prose}
    paths = {name: Markup(f"assets/{name}.png") for name in specs}
    page = _run(environment, "card.md.j2", _context(view) | {"charts": specs, "assets": paths})
    return page, {str(paths[name]): png(spec) for name, spec in specs.items() if paths[name] in page}


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
        "headroom": _headroom(view.card.peak.fp16_headroom),
        "provenance": _provenance(view.card),
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


def _bar_width(fraction: float | None) -> str:
    """Percent for a CSS width, within 0 … 100 whatever the card says."""
    return f"{min(max(fraction or 0.0, 0.0), 1.0) * 100:.1f}"


def _coefficient(value: float | None) -> str:
    return text.ABSENT if value is None else f"{value:.2f}".replace("-", text.MINUS)


_FILTERS: dict[str, Any] = {
    "number": text.number,
    "percent": text.percent,
    "decibels": text.decibels,
    "count": text.count,
    "size": text.size,
    "token": text.token,
    "factor": text.factor,
    "coefficient": _coefficient,
    "bar_width": _bar_width,
    "sentence": text.sentence,
    "advised": advised,
    "relative_error": text.relative_error,
    "mark": _MARKS.__getitem__,
}
