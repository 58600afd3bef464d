"""`lora-router route evaluate`: how well labelled requests are routed, at every threshold."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.extensions.calibration.commands.calibrate import measured_pairs
from router.extensions.calibration.offline import Files, Ood

if TYPE_CHECKING:
    from router.extensions.calibration.certify import Tested

CalibrationFile = Annotated[
    str,
    typer.Option(
        "--calibration", metavar="FILE", help="auto: the one that a server here would use; '': none."
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw error and coverage: .png, .svg, .pdf or .html."),
]


def evaluate(
    files: Files,
    ood: Ood = None,
    calibration: CalibrationFile = "auto",
    plot: Plot = None,
    json: flags.Json = False,
) -> None:
    """Measure how requests are routed, without a server.

    Accuracy with every request forced to a choice, and what happens at the threshold that would be served,
    and at others. Each line of FILE is {"text": ..., "label": ADAPTER or "", "source": ...}.

    \b
    Example:
      lora-router route evaluate requests.jsonl --ood strange.jsonl --plot risk.png
    """
    from dataclasses import asdict

    from router.cli.output import print_json
    from router.cli.settings import rule_of
    from router.extensions.calibration.certify import Goal, try_candidates
    from router.extensions.calibration.evaluation import confusion, measure
    from router.extensions.calibration.offline import local

    if plot is not None and plot.suffix not in (".png", ".svg", ".pdf", ".html"):
        raise CliError(f"{plot}: a picture is .png, .svg, .pdf or .html", MISUSED)
    here = local()
    rule = rule_of(here.settings.model_copy(update={"calibration": calibration}))
    known, strange = here.route(here.read(files), [] if ood is None else here.read([ood], ""))
    goal, threshold = Goal(), rule.now.threshold
    if rule.calibration is not None:
        goal = Goal(rule.calibration.target, delta=rule.calibration.delta)
    labels, table = confusion(known, threshold)
    tested = try_candidates(known, strange, goal)
    found: dict[str, Any] = {
        "calibration": None if rule.calibration is None else rule.calibration.created,
        "threshold": threshold,
        **measure(known, strange, threshold, goal.delta),
        "confusion": {"labels": labels, "table": table},
        "curve": [asdict(one) for one in tested],
    }
    if plot is not None:
        _draw(plot, tested, goal.target, found)
    if json:
        print_json(found)
    else:
        _print(found)


def _draw(path: Path, tested: list[Tested], target: float, found: dict[str, Any]) -> None:
    """Error among routed by the share routed. HTML is a page with the drawing in it."""
    from router.errors import install_extra

    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise CliError(f"pictures need matplotlib: {install_extra('pictures')}") from None
    rows, shown = max(1, found["rows"]), [one for one in tested if one.routed]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    shares = [one.routed / rows for one in shown]
    axes.plot(shares, [one.errors / one.routed for one in shown], label="every threshold")
    axes.plot(shares, [one.error_bound for one in shown], linewidth=1, label="its bound")
    axes.axhline(target, color="tab:red", linestyle="--", linewidth=1, label=f"target {target:.0%}")
    axes.plot([found["routed"] / rows], [found["error"]], "o", color="tab:green", label="as it routes now")
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


def _print(found: dict[str, Any]) -> None:
    from router.cli.output import print_pairs, print_table

    of = f"calibration of {found['calibration']}" if found["calibration"] else "no calibration"
    decided = ", ".join(f"{name} {count}" for name, count in found["decided_by"].items())
    print_pairs(
        [
            ("threshold", f"{found['threshold']:.3f} ({of})"),
            *measured_pairs(found),
            ("decided by", decided or "nothing was routed"),
        ]
    )
    print("\nby label and source: right if forced to choose, routed, wrong among routed")
    counts = [("label", name or "(base)", one) for name, one in found["labels"].items()]
    counts += [("source", name or "-", one) for name, one in found["sources"].items()]
    keys = ("rows", "right", "routed", "errors")
    print_table(
        ["", "", *(key.upper() for key in keys)],
        [(kind, name, *(str(one[key]) for key in keys)) for kind, name, one in counts],
    )
    print("\nconfusion: true label down, where it goes across")
    labels = [label or "(base)" for label in found["confusion"]["labels"]]
    rows = zip(labels, found["confusion"]["table"], strict=True)
    print_table(["", *labels], [(label, *map(str, row)) for label, row in rows])
    print("\nat other thresholds; each bound alone")
    print_table(
        ["THRESHOLD", "ROUTED", "WRONG", "BOUND", "FOR NO ADAPTER", "BOUND"],
        [
            (
                f"{one['threshold']:.3f}",
                str(one["routed"]),
                str(one["errors"]),
                f"{one['error_bound']:.1%}",
                str(one["strange_routed"]),
                "-" if one["strange_bound"] is None else f"{one['strange_bound']:.1%}",
            )
            for one in found["curve"][::3]
        ],
    )
