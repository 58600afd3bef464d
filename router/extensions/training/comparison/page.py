"""A comparison as one HTML page that needs no other file, no network and no script."""

from __future__ import annotations

from router.extensions.training.comparison import words
from router.extensions.training.comparison.run import VersionComparison
from router.quantities import points

TONES = {"better": "good", "not worse": "good", "worse": "bad", "undecided": "open"}


def page(found: VersionComparison, data: str, margin: float | None = None) -> str:
    """The page; texts of prompts and answers are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("router.extensions.training.comparison"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    gap = found.difference
    reach = max(abs(gap.low), abs(gap.high), margin or 0.0, 0.02)
    return environment.get_template("comparison.html.j2").render(
        old=found.old,
        new=found.new,
        data=data,
        headline=words.headline(found, margin),
        advice=words.advice(found, margin),
        tone=TONES[words.verdict(found, margin)],
        facts=words.facts(found),
        columns=words.LOAD_COLUMNS,
        load=words.load_rows(found),
        note=words.LOAD_NOTE,
        bar={"low": gap.low / reach, "high": gap.high / reach, "mean": gap.mean / reach},
        reach=points(reach),
        regressions=found.regressions(),
        points=points,
    )
