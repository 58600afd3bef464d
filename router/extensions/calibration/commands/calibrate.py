"""`lora-router route calibrate`: the threshold that labelled requests prove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.extensions.calibration.offline import Files, Ood

if TYPE_CHECKING:
    from router.extensions.calibration.certify import Goal, Tested
    from router.extensions.calibration.rows import RoutedRow
    from router.routing.calibration import Calibration

Target = Annotated[float, typer.Option("--target", metavar="P", help="Most error among routed requests.")]
Delta = Annotated[float, typer.Option("--delta", metavar="P", help="Chance that a promise does not hold.")]
OodTarget = Annotated[
    float,
    typer.Option("--ood-target", metavar="P", help="Most share of the requests of --ood that is routed."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Default: calibration.json in the adapters folder.",
        show_default=False,
    ),
]  # fmt: skip
Accept = Annotated[
    bool, typer.Option("--accept", help="Take the best that the requests prove, where not the target.")
]


def calibrate(
    files: Files,
    ood: Ood = None,
    target: Target = 0.05,
    delta: Delta = 0.05,
    ood_target: OodTarget = 0.05,
    accept: Accept = False,
    output: Output = None,
    json: flags.Json = False,
) -> None:
    """Choose the confidence that routes, and prove how often it errs.

    Writes the calibration file, which a running server reads within seconds. Each line of FILE is
    {"text": ..., "label": ADAPTER or ""}. Without --ood nothing is promised for requests that are for no
    adapter.

    Where the requests do not prove the target, the best that they prove is shown, and about how many would
    prove it. Nothing is written then without --accept, and the exit code is 1.

    \b
    Example:
      lora-router route calibrate requests.jsonl --ood strange.jsonl --target 0.05
    """
    from router.cli.output import print_json
    from router.extensions.calibration.certify import (
        Goal,
        best_supported,
        loosest_proven,
        times_needed,
        try_candidates,
    )
    from router.extensions.calibration.offline import local
    from router.routing.calibration import FILE_NAME, write_calibration

    for option, value in (("--target", target), ("--delta", delta), ("--ood-target", ood_target)):
        if not 0 < value < 1:
            raise CliError(f"{option} is {value}: it must lie between 0 and 1", MISUSED)
    goal = Goal(target, ood_target, delta)
    here = local()
    known, strange = here.route(here.read(files), [] if ood is None else here.read([ood], ""))
    tested = try_candidates(known, strange, goal)
    taken, reached = loosest_proven(tested), goal
    refusal = ""
    if taken is None:
        supported = best_supported(tested, len(strange), goal)
        refusal = _refusal(goal, supported, times_needed(tested, len(strange), goal), known, strange)
        if supported is None:
            raise CliError(refusal)
        taken, reached = supported
    found = _calibration(taken, reached, tested, known, strange)
    path = output or here.settings.adapters_dir[0] / FILE_NAME
    written = accept or not refusal
    if written:
        write_calibration(path, found)
    if json:
        print_json({"file": path if written else None, **found.model_dump()})
    else:
        _print(found)
        if written:
            print(f"\nwrote {path}; a running server reads it within seconds")
    if not written:
        raise CliError(f"nothing was written; --accept takes what is shown. {refusal}")


def _calibration(
    taken: Tested, goal: Goal, tested: list[Tested], known: list[RoutedRow], strange: list[RoutedRow]
) -> Calibration:
    from dataclasses import asdict
    from datetime import UTC, datetime

    from router.extensions.calibration.evaluation import measure
    from router.routing.calibration import Calibration

    measured = measure(known, strange, taken.threshold, goal.delta)
    return Calibration(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        threshold=taken.threshold,
        target=goal.target,
        strange_target=goal.strange_target if strange else None,
        delta=goal.delta,
        adapters=tuple(sorted({one.row.label for one in known} - {""})),
        report={**measured, "tested": [asdict(one) for one in tested]},
    )


def _refusal(
    goal: Goal,
    supported: tuple[Tested, Goal] | None,
    times: float | None,
    known: list[RoutedRow],
    strange: list[RoutedRow],
) -> str:
    """Why the goal is not proven, and how many requests would do it."""
    counts = f"{len(known)} requests" + (f" and {len(strange)} of --ood" if strange else "")
    wanted = f"{goal.target:.1%} errors" + (f" and {goal.strange_target:.1%} of --ood" if strange else "")
    best = "nothing at all"
    if supported is not None:
        best = f"{supported[1].target:.1%} errors"
        best += f" and {supported[1].strange_target:.1%} of --ood routed" if strange else ""
    said = f"the {counts} do not prove the target of {wanted}; they prove {best}."
    if times is None:
        return f"{said} No number of requests would at this error: write more varied examples"
    more = f"{times * len(known):.0f}" + (f" and {times * len(strange):.0f} of --ood" if strange else "")
    return f"{said} About {more} would, if they go wrong as often as these"


def _print(found: Calibration) -> None:
    from router.cli.output import print_pairs

    sure, said = f"with {1 - found.delta:.0%} confidence", found.report
    print_pairs([("threshold", f"{found.threshold:.3f}"), *measured_pairs(said)])
    print(f"\npromised {sure}: at most {found.target:.1%} of routed requests go wrong")
    if found.strange_target is None:
        print("nothing is promised for requests that are for no adapter: give some with --ood")
    else:
        print(f"and at most {found.strange_target:.1%} of requests that are for no adapter are routed")


def measured_pairs(said: dict[str, Any]) -> list[tuple[str, str]]:
    """What `measure` found, as lines."""
    pairs = [
        ("requests", f"{said['rows']:,}"),
        ("coverage", f"{said['coverage']:.1%} of the requests that are for an adapter"),
        (
            "error among routed",
            f"{said['errors']} of {said['routed']}, {said['error']:.1%} (bound {said['error_bound']:.1%})",
        ),
        ("forced to choose", f"accuracy {said['accuracy']:.3f}, macro-F1 {said['macro_f1']:.3f}"),
    ]
    if said["strange_rows"]:
        counts = f"{said['strange_routed']} of {said['strange_rows']} routed"
        pairs.append(("for no adapter", f"{counts} (bound {said['strange_bound']:.1%})"))
    return pairs
