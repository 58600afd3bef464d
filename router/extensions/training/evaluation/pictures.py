"""Pictures beside a report card, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from router.extensions.training.files import explained


def draw_pictures(sections: Mapping[str, Any], folder: Path) -> list[str]:
    """One for each section that has something to show, into `folder`; their names."""
    drawn = {
        "generalization": (draw_generalization, "sets"),
        "bias": (draw_bias, "rows"),
        "data_need": (draw_data_need, "points"),
    }
    made = []
    for name, (draw, needed) in drawn.items():
        if sections[name].get(needed):
            with explained(folder / f"{name}.png"):
                draw(sections[name], folder / f"{name}.png")
            made.append(f"{name}.png")
    return made


def draw_data_need(section: Mapping[str, Any], path: Path) -> None:
    """The score over the number of training rows, with intervals; `section` is data_need's."""
    points = section["points"]
    rows = [point["rows"] for point in points]
    figure, axes = _figure(xlabel="training rows", ylabel=section["metric"])
    scores = [point["score"] for point in points]
    axes.errorbar(rows, [score["value"] for score in scores], yerr=_bars(scores), fmt="o-", capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(
        rows, [f"{row}\n{point['fraction']:.0%}" for row, point in zip(rows, points, strict=True)]
    )
    axes.minorticks_off()
    figure.savefig(path)


def draw_generalization(section: Mapping[str, Any], path: Path) -> None:
    """Adapter - base on every set, with intervals and the margin; `section` is generalization's.

    Raises ValueError if the section has no set.
    """
    sets = section["sets"]
    if not sets:
        raise ValueError("nothing was compared")
    figure, axes = _figure(xlabel="adapter - base, nats per gold token", ylabel="")
    gaps = [found["difference"] for found in sets]
    places = range(len(sets))
    axes.errorbar([gap["value"] for gap in gaps], places, xerr=_bars(gaps), fmt="o", capsize=3)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.axvline(section["margin"], color="tab:red", lw=0.8, ls=":", label="margin")
    axes.set_yticks(places, [found["what"] for found in sets])
    axes.invert_yaxis()
    axes.legend(fontsize="small")
    figure.savefig(path)


def draw_bias(section: Mapping[str, Any], path: Path) -> None:
    """The share of changed answers for each attribute, base and adapter; `section` is bias's."""
    rows = section["rows"]
    figure, axes = _figure(xlabel="swapped", ylabel="share of answers that change")
    for shift, arm in ((-0.1, "base"), (0.1, "adapter")):
        shares = [row[arm] for row in rows]
        places = [place + shift for place in range(len(rows))]
        heights = [share["value"] for share in shares]
        axes.errorbar(places, heights, yerr=_bars(shares), fmt="o", capsize=3, label=arm)
    axes.set_xticks(range(len(rows)), [row["what"] for row in rows])
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    figure.savefig(path)


def _figure(**labels: str) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("agg")
    figure = Figure(figsize=(6, 3.2), dpi=100, layout="constrained")
    return figure, figure.add_subplot(**labels)


def _bars(estimates: list[Mapping[str, float]]) -> list[list[float]]:
    """Lengths of the bars below and above each value, as matplotlib wants them."""
    return [
        [max(0.0, found["value"] - found["low"]) for found in estimates],
        [max(0.0, found["high"] - found["value"]) for found in estimates],
    ]
