"""`lora-router route calibrate`: fit and prove the thresholds of the classifiers here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import CliError
from router.cli.route.local import AdaptersDirs, Base, Files, KeptIn, Ood, PluginsDirs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from router.calibration.certify import Goal
    from router.calibration.fit import Setting
    from router.calibration.model import Calibration
    from router.calibration.rows import Ballot, Row
    from router.cli.route.local import Fitting, Local
    from router.types import AdapterProfile

STRANGERS = "strangers.txt"
LOW_COVERAGE = 0.6
MOST_LEARNED = 600  # labelled requests that classifiers learn; more say enough of thresholds

Target = Annotated[float, typer.Option("--target", metavar="P", help="Most error among routed requests.")]
Delta = Annotated[float, typer.Option("--delta", metavar="P", help="Chance that a promise does not hold.")]
OodTarget = Annotated[
    float,
    typer.Option("--ood-target", metavar="P", help="Most share of strange requests that is routed."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Default: calibration.json in the adapters folder.",
        show_default=False,
    ),
]  # fmt: skip


Accept = Annotated[
    bool, typer.Option("--accept", help="Take the best that the requests support, where not the target.")
]

Learn = Annotated[
    bool,
    typer.Option(
        "--learn", help="Have classifiers learn the requests, too: more is routed, by an estimate, no proof."
    ),
]


def calibrate(
    files: Files,
    ood: Ood = None,
    target: Target = 0.05,
    delta: Delta = 0.05,
    ood_target: OodTarget = 0.05,
    accept: Accept = False,
    learn: Learn = False,
    output: Output = None,
    adapters_dir: AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    votes: KeptIn = None,
    json: flags.Json = False,
) -> None:
    """Fit and prove the thresholds of routing.

    A third of the requests fits temperatures and weights, the others prove the thresholds. Writes the
    calibration file, which a running server reads within seconds. Each line of FILE is {"text": ...,
    "label": ADAPTER or ""}. Without --ood the strange requests of this project are used.

    Where the requests cannot prove the target, the best that they support is shown, and the number that the
    target would need. Nothing is written then without --accept, and the exit code is 1. The requests are kept
    in a file beside the calibration, for `route learn`.

    \b
    Example:
      lora-router route calibrate requests.jsonl --ood strange.jsonl --target 0.05
    """
    from router.calibration.certify import Goal
    from router.calibration.file import FILE_NAME, write_calibration
    from router.calibration.fit import calibrate
    from router.calibration.rows import CalibrationError
    from router.cli.output import print_json
    from router.cli.route.local import note, open_fitting, read_known, read_strange

    goal = Goal(target, delta, ood_target)
    with open_fitting(adapters_dir, plugins_dir, base=base) as fitting:
        local = fitting.fitted(fitting.profiles)
        known, strange = read_known(files, local.profiles), read_strange(ood, local.profiles)
        if ood is None and (strange := built_in_strange(local.profiles, known)):
            note(f"--ood is not given: {len(strange)} strange requests of this project are used")
        setting = _setting(local, goal)
        ballots = (
            local.votes(known, "requests", votes),
            local.votes(strange, "out-of-distribution", votes),
        )
        path = output or local.settings.adapter_folders[0] / FILE_NAME
        needed: int | None = None
        try:
            if learn:
                raise CalibrationError("classifiers learn the requests, so that no proof is left")
            found, refused = calibrate(*ballots, setting, say=note), ""
        except CalibrationError as error:
            refused = error.message
            found, needed = _offered(fitting, ballots, setting, learn)
    written = accept or not refused
    if written:
        found = with_rows(path, found, *ballots)
        write_calibration(path, found)
    if json:
        said = {"file": path if written else None, "target": found.target, "ood_target": found.ood_target}
        print_json({**said, **found.report, "threshold": found.threshold, "needed": needed})
    else:
        _print(found)
        if refused:
            _print_offer(found, needed, goal)
        elif found.report["held_out"]["coverage"] < LOW_COVERAGE and len(known) <= MOST_LEARNED:
            print("\nfew requests are routed: --learn routes more, by an estimate instead of a proof")
        if written:
            print(f"\nwrote {path}; a running server reads it within seconds")
    if not written:
        raise CliError(f"nothing was written; --accept takes what is shown. {refused}")


def built_in_strange(profiles: Sequence[AdapterProfile], known: Sequence[Row]) -> list[Row]:
    """The strange requests of this project that no adapter and no labelled request has; none where the
    package came without its plugins."""
    from router.calibration.rows import Row, distinct, unseen
    from router.classifiers.regression import read_background
    from router.cli.settings import carried

    paths = [path for folder in carried("plugins") if (path := folder / STRANGERS).is_file()]
    rows = distinct(Row(text, "", "built in") for path in paths for text in read_background(path, profiles))
    examples = (text for p in profiles for text in (*p.examples, *p.negative_examples))
    return unseen(rows, {*examples, *(row.text for row in known)})


def with_rows(path: Path, of: Calibration, known: Sequence[Ballot], strange: Sequence[Ballot]) -> Calibration:
    """The calibration, once the rows that `route learn` proves it on again are in the file beside it."""
    from dataclasses import replace

    from router.calibration.fit import split_rows
    from router.calibration.kept_rows import DIGEST, KeptRows, digest, path_of
    from router.calibration.offer import METHOD
    from router.corrections.store import write_whole

    (fit, proof), (_, strange_proof) = split_rows(known), split_rows(strange)
    if of.report.get("method") == METHOD:
        fit, proof, strange_proof = [], list(known), list(strange)
    data = KeptRows.of(*([ballot.row for ballot in part] for part in (fit, proof, strange_proof))).written()
    write_whole(path_of(path), data)
    return replace(of, report={**of.report, DIGEST: digest(data)})


def _setting(local: Local, goal: Goal) -> Setting:
    from router.calibration.fit import Setting
    from router.classifiers.axes import Axes

    return Setting(
        classifiers=local.panel.names,
        kinds=local.kinds,
        axes=Axes(local.settings.task_first, local.settings.domain_first),
        goal=goal,
        binding=local.binding(),
        left_out=tuple(local.panel.skipped),
        profiles=local.profiles,
    )


# -- what is offered where the target cannot be proven


def _offered(
    fitting: Fitting, ballots: tuple[list[Ballot], list[Ballot]], setting: Setting, learn: bool
) -> tuple[Calibration, int | None]:
    """The best that the requests support. Few requests are worth more as examples: classifiers learn them,
    too, and each is judged by classifiers that did not learn it."""
    from dataclasses import replace

    from router.calibration.fit import check_rows
    from router.calibration.offer import offer
    from router.cli.route.local import note

    check_rows(*ballots, setting)
    known = [ballot.row for ballot in ballots[0]]
    learned: Mapping[str, tuple[str, ...]] = {}
    if learn or len(known) <= MOST_LEARNED:
        note(f"no proof; classifiers learn the {len(known)} requests, fold by fold")
        learned = _examples(known)
        strange = [ballot.row for ballot in ballots[1]]
        ballots = without_their_own(fitting, fitting.profiles, known, strange)
    found = offer(*ballots, setting)
    return replace(found.calibration, learned=learned), found.needed


def _examples(rows: Sequence[Row]) -> dict[str, tuple[str, ...]]:
    """The requests of each adapter."""
    labels = sorted({row.label for row in rows} - {""})
    return {label: tuple(row.text for row in rows if row.label == label) for label in labels}


def without_their_own(
    fitting: Fitting, profiles: tuple[AdapterProfile, ...], known: Sequence[Row], strange: Sequence[Row]
) -> tuple[list[Ballot], list[Ballot]]:
    """Votes on all rows, on each of classifiers that learned the rows of the other folds."""
    from router.calibration.fit import FOLDS
    from router.calibration.rows import stratified_folds

    folds = stratified_folds(known, FOLDS), stratified_folds(strange, FOLDS)
    found: tuple[dict[int, Ballot], dict[int, Ballot]] = ({}, {})
    for number, (away, strange_away) in enumerate(zip(*folds, strict=True), 1):
        others = [row for i, row in enumerate(known) if i not in set(away)]
        local = fitting.fitted(profiles, _examples(others))
        for side, rows, places in ((0, known, away), (1, strange, strange_away)):
            votes = local.votes([rows[i] for i in places], f"fold {number}")
            found[side].update(zip(places, votes, strict=True))
    return [found[0][i] for i in range(len(known))], [found[1][i] for i in range(len(strange))]


def _print_offer(found: Calibration, needed: int | None, goal: Goal) -> None:
    print(
        f"\nthe target of {goal.target:.1%} cannot be proven; these requests support {found.target:.1%}, and "
        f"{found.ood_target:.1%} of strange requests routed, by cross-validation"
    )
    if needed is None:
        print("no number of labelled requests would prove it at this error: write more varied examples")
    else:
        print(f"about {needed} labelled requests would prove it, if they go wrong as often as these")


# -- what is printed


def _print(found: Calibration) -> None:
    from router.cli.output import print_pairs, print_table

    proof, held = found.report["proof"], found.report["held_out"]
    sure = f"at {1 - found.delta:.0%} confidence"
    print_table(
        ["CLASSIFIER", "TEMPERATURE", "ECE", "95 % INTERVAL", "DECIDES"],
        [
            (name, f"{scaler.temperature:.2f}", *_ece(held["ece"][name]), str(held["stages"][name]))
            for name, scaler in found.scalers.items()
        ],
    )
    print()
    pairs = [
        ("threshold", f"{found.threshold:.3f}"),
        (
            "error among routed",
            f"{proof['errors']} of {proof['routed']}, under {proof['error_bound']:.1%} {sure}",
        ),
        ("coverage", f"{held['coverage']:.1%} of the requests that are for an adapter"),
        ("forced to choose", f"accuracy {held['accuracy']:.3f}, macro-F1 {held['macro_f1']:.3f}"),
        ("ECE together", " ".join(_ece(held["ece_all"]))),
    ]
    if held["ood_routed"] is not None:
        strange = f"{proof['strange_routed']} routed, under {proof['strange_bound']:.1%} {sure}"
        pairs.append(("out of distribution", f"{strange}; AUROC {held['ood_auroc']:.3f}"))
    else:
        pairs.append(("out of distribution", "not tested; give requests with --ood"))
    print_pairs(pairs)


def _ece(found: dict[str, Any]) -> tuple[str, str]:
    return f"{found['ece']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"
