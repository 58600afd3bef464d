"""`lora-router experiments report NAME --html FILE`: the report as one page with charts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.hookspecs import RegisterReportFormat, hookimpl

if TYPE_CHECKING:
    from router.experiments.report.model import Report


@hookimpl
def register_report_formats(register: RegisterReportFormat) -> None:
    """`html`."""
    register("html", make_page)


def make_page(report: Report) -> str:
    """The page. jinja2 is imported where a page is made."""
    from router.extensions.experiments_page.page import page

    return page(report)
