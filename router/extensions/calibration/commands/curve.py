"""`lora-router route curve`: coverage and error at every threshold, and what more requests would buy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import CliError
from router.extensions.calibration.commands.evaluate import new_figure, save_figure
from router.extensions.calibration.commands.judge import CalibrationFile
from router.extensions.calibration.commands.local import Base, Files, KeptIn, Ood, PluginsDirs

if TYPE_CHECKING:
    from router.calibration.model import Calibration
    from router.extensions.calibration.commands.local import LocalRouting
    from router.extensions.calibration.curve import CurvePoint, RowForecast, ThresholdCurve

Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw it: .png, .svg, .pdf or .html."),
]
More = Annotated[int, typer.Option("--more", metavar="N", min=1, help="How many more requests to think of.")]
TargetError = Annotated[
    float | None,
    typer.Option(
        "--target-error",
        metavar="P",
        help="Instead of the calibration's own.",
        show_default=False,
        min=0,
        max=1,
    ),
]
TargetOod = Annotated[
    float | None,
    typer.Option(
        "--target-ood",
        metavar="P",
        help="Instead of the calibration's own.",
        show_default=False,
        min=0,
        max=1,
    ),
]
SHOWN = 20  # lines of the table


def curve(
    files: Files,
    ood: Ood = None,
    calibration: CalibrationFile = "auto",
    target_error: TargetError = None,
    target_ood: TargetOod = None,
    more: More = 500,
    plot: Plot = None,
    adapters_dir: flags.AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    votes: KeptIn = None,
    json: flags.Json = False,
) -> None:
    """Show coverage and error at every threshold.

    Where the calibration stands among them, with the bounds that these requests prove, and what more
    requests would let be proven. Requests that the calibration was made from flatter it; give others.

    \b
    Example:
      lora-router route curve requests.jsonl --ood strange.jsonl --plot curve.png
    """
    from router.calibration.targets import Goal
    from router.cli.output import print_json
    from router.extensions.calibration.commands.evaluate import picture_file
    from router.extensions.calibration.commands.local import open_local, read_known, read_strange
    from router.extensions.calibration.curve import ThresholdCurve

    picture = picture_file(plot)
    with open_local(adapters_dir, plugins_dir, base=base, learned_by=calibration) as local:
        known, strange = read_known(files, local.taught), read_strange(ood, local.taught)
        of = _calibration(local, calibration)
        ballots = (
            local.votes(known, "requests", votes),
            local.votes(strange, "out-of-distribution", votes),
        )
    goal = Goal(
        of.target if target_error is None else target_error,
        of.delta,
        of.ood_target if target_ood is None else target_ood,
    )
    seen = ThresholdCurve(of, *ballots, local.kinds)
    points, forecasts = seen.points(goal.delta), _forecasts(seen, goal, more, bool(strange))
    if picture is not None:
        _draw(picture, points, of.threshold, (goal.target, goal.ood_target if strange else None))
    if json:
        said = [{**asdict(point), "error": point.error} for point in points]
        print_json(
            {
                "threshold": of.threshold,
                "goal": asdict(goal),
                "points": said,
                "forecasts": [asdict(one) for one in forecasts],
            }
        )
    else:
        _print(points, of.threshold, forecasts, (len(known), len(strange)))


def _calibration(local: LocalRouting, said: str) -> Calibration:
    """The one in force. Raises CliError where there is none, or it is for another set."""
    from router.extensions.calibration.commands.judge import local_rule
    from router.routing.policy import CalibratedRule

    in_force = local_rule(local, said)
    rule = in_force.now
    if not isinstance(rule, CalibratedRule):
        raise CliError("there is no calibration here: `lora-router route calibrate` makes one")
    if rule.differences:
        raise CliError(f"the calibration is {in_force.status}; run `lora-router route calibrate` again first")
    return rule.calibration


def _forecasts(seen: ThresholdCurve, goal: Any, more: int, strange: bool) -> list[RowForecast]:
    """As many as now, then more of each kind and of both."""
    asked = [(0, 0), (more, 0), *([(0, more), (more, more)] if strange else [])]
    return [seen.forecast(goal, *each) for each in asked]


def _print(
    points: Sequence[CurvePoint],
    threshold: float,
    forecasts: Sequence[RowForecast],
    counts: tuple[int, int],
) -> None:
    from router.cli.output import print_table

    step = -(-len(points) // SHOWN)
    shown = [p for i, p in enumerate(points) if i % step == 0 or p.threshold == threshold]
    print_table(
        ["THRESHOLD", "COVERAGE", "ROUTED", "WRONG", "ERROR", "BOUND", "STRANGE", "BOUND", ""],
        [
            (
                f"{p.threshold:.3f}",
                f"{p.coverage:.1%}",
                str(p.routed),
                str(p.errors),
                f"{p.error:.1%}",
                f"{p.error_bound:.1%}",
                *((str(p.strange_routed), f"{p.strange_bound:.1%}") if counts[1] else ("", "")),
                "<- it stands here" if p.threshold == threshold else "",
            )
            for p in shown
        ],
    )
    print(
        f"\nwhat could be proven with {counts[0]} requests and {counts[1]} strange ones to test on, and more:"
    )
    print_table(
        ["MORE REQUESTS", "MORE STRANGE", "COVERAGE", "THRESHOLD"],
        [(str(f.requests), str(f.strange), f"{f.coverage:.1%}", f"{f.threshold:.3f}") for f in forecasts],
    )


def _draw(
    path: Path, points: Sequence[CurvePoint], threshold: float, goal: tuple[float, float | None]
) -> None:
    """Error and strange requests over coverage, each with its bound."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    target, target_ood = goal
    routed = [p for p in points if p.routed]
    lines = [
        ("error among routed", "tab:blue", "-", [p.error for p in routed]),
        ("its bound", "tab:blue", ":", [p.error_bound for p in routed]),
        (f"target {target:.0%}", "tab:blue", "--", [target] * len(routed)),
    ]
    if target_ood is not None:
        lines += [
            ("strange requests routed, bound", "tab:orange", ":", [p.strange_bound for p in routed]),
            (f"target {target_ood:.0%}", "tab:orange", "--", [target_ood] * len(routed)),
        ]
    for label, color, style, values in lines:
        axes.plot([p.coverage for p in routed], values, style, color=color, label=label)
    here = next(p for p in points if p.threshold == threshold)
    axes.plot(
        [here.coverage], [here.error], "o", color="tab:green", label=f"it stands here ({threshold:.2f})"
    )
    top = 2.0 * max(target, target_ood or 0.0, here.error_bound)
    axes.set(xlabel="share of requests routed", ylabel="share wrong", xlim=(0, 1), ylim=(0, top))
    axes.legend(frameon=False, fontsize="small", loc="upper left")
    save_figure(figure, path, "Coverage and error")
