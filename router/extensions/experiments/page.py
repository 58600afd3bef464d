"""The report as HTML: its body, which the console shows too, and a page that needs no other file, network or
script."""

from __future__ import annotations

from functools import cache
from importlib import resources
from importlib.util import find_spec
from typing import TYPE_CHECKING

from router.errors import ConfigError, install_extra
from router.extensions.experiments.document import MARKS, document

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

    from router.extensions.experiments.document import Document
    from router.extensions.experiments.report.model import Report

STYLE = resources.files("router.extensions.experiments").joinpath("templates", "report.css")
"""The style of the body; its colours are variables, which a page has to set."""


def page(report: Report) -> str:
    """A page by itself. Raises ConfigError without jinja2."""
    if find_spec("jinja2") is None:
        raise ConfigError(f"a page needs the package jinja2: {install_extra('console')}")
    values = {"it": document(report), "act": "", "style": STYLE.read_text(encoding="utf-8")}
    return _environment().get_template("page.html").render(values)


def body(found: Document, act: str | Markup = "") -> Markup:
    """What both have. `act` stands below the next step in place of its command."""
    from markupsafe import Markup

    text = _environment().get_template("body.html").render(it=found, act=act)
    return Markup(text)  # noqa: S704 -- the template escapes


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("router.extensions.experiments"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters["tone"] = lambda text: MARKS.get(text[:1], "")
    return found
