"""`lora-router experiments report NAME --html FILE`: the report as one page with charts."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from router.errors import ConfigError, install_extra
from router.hookspecs import RegisterReportFormat, hookimpl

if TYPE_CHECKING:
    from router.experiments.report.model import Report


@hookimpl
def register_report_formats(register: RegisterReportFormat) -> None:
    """`html`."""
    register("html", make_page)


def make_page(report: Report) -> str:
    """The page. Raises ConfigError without jinja2."""
    if find_spec("jinja2") is None:
        raise ConfigError(f"a page needs the package jinja2: {install_extra('console')}")
    from router.extensions.experiments_page.page import page

    return page(report)
