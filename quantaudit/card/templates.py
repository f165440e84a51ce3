"""The templates' environment: where they are found, which filters they have, and how their output is made inert.

Everything a template prints passes one gate (`finalize`): in HTML it is made visible and then escaped by Jinja, in
Markdown it is escaped for Markdown. Only what is marked as safe (scripts, inline code, drawings) passes unchanged.
"""

from __future__ import annotations

import base64
import hashlib
import traceback
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from quantaudit.card import text
from quantaudit.card.sections.advice import advised
from quantaudit.common.reading.regular_files import special_inside
from quantaudit.common.resources import resource_dir
from quantaudit.common.rounding import limit_percentage
from quantaudit.errors import FormatError

Filters: TypeAlias = tuple[tuple[str, Any], ...]
"""Filters of one form of output, by name, in addition to those of all."""
CODE = 1000
"""Characters of inline code, at most: commands have more than names."""
_HINT = "mend the template, or leave --template-dir out"
_MARKS = {"READY": "✅", "READY WITH CARE": "⚠️", "NOT READY": "❌", "INCONCLUSIVE": "❔"}


def check_templates(folder: Path) -> None:
    """Raises FormatError where there is no such folder."""
    if not folder.is_dir():
        raise FormatError(
            "no such folder of templates", where=str(folder), hint="give --template-dir an existing folder"
        )
    if special := special_inside(folder):
        raise FormatError(f"is {special[1]}, not a file", where=str(special[0]), hint=_HINT)


def html_environment(template_dir: Path | None) -> jinja2.Environment:
    """For pages. Files of `template_dir` replace the shipped templates of the same name."""
    return _found(template_dir, _html_output, (("prose", _html_prose), ("name", _html_name)))


def markdown_environment(template_dir: Path | None) -> jinja2.Environment:
    """For Markdown, with the same right of `template_dir`."""
    filters = (("code", _markdown_code), ("prose", _markdown_prose))
    return _found(template_dir, _markdown_output, filters)


def run(environment: jinja2.Environment, name: str, context: dict[str, Any]) -> str:
    """The output of one template. Raises FormatError, with file and line, where it does not compile or run."""
    try:
        return environment.get_template(name).render(context)
    except jinja2.TemplateSyntaxError as error:
        where = f"{error.filename or error.name or name}:{error.lineno}"
        raise FormatError(f"template does not compile: {error.message}", where=where, hint=_HINT) from error
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise FormatError(f"template does not run: {error}", where=_line_of(error, name), hint=_HINT) from error


def security_policy(scripts: Sequence[str]) -> str:
    """A page's content security policy: nothing may load, only these scripts may run. Charts need inline styles."""
    hashes = (hashlib.sha256(script.encode()).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in hashes) or "'none'"
    rules = ("default-src 'none'", f"script-src {allowed}", "style-src 'unsafe-inline'", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _found(template_dir: Path | None, finalize: Any, filters: Filters) -> jinja2.Environment:
    if template_dir is None:
        return _shipped(finalize, filters)
    check_templates(template_dir)
    return _environment((template_dir, resource_dir("templates")), finalize, filters)


@cache
def _shipped(finalize: Any, filters: Filters) -> jinja2.Environment:
    """Kept, for compiling the templates takes longer than running them."""
    return _environment((resource_dir("templates"),), finalize, filters)


def _environment(folders: Sequence[Path], finalize: Any, filters: Filters) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.FileSystemLoader(folder) for folder in folders]),
        autoescape=True,
        finalize=finalize,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {**_FILTERS, **dict(filters)}
    return environment


def _html_output(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return text.ABSENT if value is None else text.short(str(value))


def _markdown_output(value: Any) -> Markup:
    if isinstance(value, Markup):
        return value
    return Markup(text.ABSENT if value is None else text.markdown(text.short(str(value))))


def _html_prose(value: str) -> Markup:
    parts = ((is_code, Markup.escape(part)) for is_code, part in _short_parts(value))
    return Markup("").join(Markup("<code>{}</code>").format(part) if is_code else part for is_code, part in parts)


def _markdown_prose(value: str) -> Markup:
    parts = _short_parts(value)
    return Markup("".join(text.markdown_code(part) if is_code else text.markdown(part) for is_code, part in parts))


def _short_parts(value: str) -> list[tuple[bool, str]]:
    parts = ((is_code, text.short(part)) for is_code, part in text.prose_parts(value))
    return [(is_code, text.visible(part, CODE) if is_code else part) for is_code, part in parts]


def _markdown_code(value: str) -> Markup:
    return Markup(text.markdown_code(text.visible(text.short(value), CODE)))


def _html_name(value: str | None) -> Markup:
    """A name, of which more is in its title where it is too long to be shown; '—' for None."""
    if value is None:
        return Markup(text.ABSENT)
    shown, more = text.visible(value, text.NAME), text.visible(value, text.WHOLE_NAME)
    return Markup.escape(shown) if shown == more else Markup('<span title="{}">{}</span>').format(more, shown)


def _line_of(error: Exception, name: str) -> str:
    """`file:line` of the innermost template frame; Jinja rewrites tracebacks so that they name template lines."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".j2")]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else name


def _bar_width(fraction: float | None) -> str:
    """Percent for a CSS width, within 0 … 100 whatever the card says."""
    return f"{min(max(fraction or 0.0, 0.0), 1.0) * 100:.1f}"


def _script_json(value: Any) -> Markup:
    """JSON that is safe inside a script element, as short as it can be: charts hold thousands of rows."""
    short: dict[str, Any] = {"separators": (",", ":")}
    text = htmlsafe_json_dumps(value, ensure_ascii=False, **short)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair, which no file can hold
        return htmlsafe_json_dumps(value, **short)
    return text


def _coefficient(value: float | None) -> str:
    return text.ABSENT if value is None else f"{value:.2f}".replace("-", text.MINUS)


_FILTERS: dict[str, Any] = {
    "number": text.number,
    "percent": text.percent,
    "kl_interval": text.kl_interval,
    "level": limit_percentage,
    "decibels": text.decibels,
    "count": text.count,
    "counted": text.counted,
    "size": text.size,
    "token": text.token,
    "factor": text.factor,
    "coefficient": _coefficient,
    "bar_width": _bar_width,
    "brief": text.visible,
    "capital": text.capital,
    "sentence": text.sentence,
    "advised": advised,
    "relative_error": text.relative_error,
    "mark": _MARKS.__getitem__,
    "script_json": _script_json,
}
