"""The risk-coverage curve as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from router.cli.errors import CliError


def plot(path: Path, curve: Sequence[Sequence[float]], target: float, routed: tuple[float, float]) -> None:
    """`curve` of (threshold, coverage, error); `routed` is (coverage, error) of the router as it stands."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise CliError("pictures need matplotlib: pip install 'lora-router[train]'") from None
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([c for _, c, _ in curve], [e for _, _, e in curve], label="every threshold")
    axes.axhline(target, color="tab:red", linestyle="--", linewidth=1, label=f"target {target:.0%}")
    axes.plot(*([value] for value in routed), "o", color="tab:green", label="as it routes now")
    axes.set(xlabel="share of requests routed", ylabel="error among routed", xlim=(0, 1), ylim=(0, None))
    axes.legend(frameon=False)
    if path.suffix != ".html":
        figure.savefig(path, dpi=150)
        return
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    page = (
        f"<!doctype html>\n<meta charset=utf-8>\n<title>Risk and coverage</title>\n{svg[svg.index('<svg') :]}"
    )
    path.write_text(page, encoding="utf-8")
