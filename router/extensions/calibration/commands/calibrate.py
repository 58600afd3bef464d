"""`lora-router route calibrate`: fit and prove the thresholds of the classifiers here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import CliError
from router.extensions.calibration.commands.local import Base, Files, KeptIn, Ood, PluginsDirs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from router.calibration.model import Calibration
    from router.calibration.targets import Goal
    from router.extensions.calibration.commands.local import Fitting, LocalRouting
    from router.extensions.calibration.fit import Setting
    from router.extensions.calibration.rows import Ballot, DataRow, StoredRows
    from router.types import AdapterProfile

    Ballots = tuple[list[Ballot], list[Ballot]]

STRANGERS = "strangers.txt"
LOW_COVERAGE = 0.6
MOST_LEARNED, LEARNED_EACH = 1000, 32  # labelled requests, also for each adapter, that classifiers learn

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
    adapters_dir: flags.AdaptersDirs = None,
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
    from router.calibration.file import FILE_NAME, write_calibration
    from router.calibration.targets import Goal, Unproven
    from router.cli.output import print_json
    from router.extensions.calibration.commands.local import note, open_fitting, read_known, read_strange
    from router.extensions.calibration.rows import StoredRows

    goal = Goal(target, delta, ood_target)
    with open_fitting(adapters_dir, plugins_dir, base=base) as fitting:
        local = fitting.fitted(fitting.profiles)
        known, strange = read_known(files, local.profiles), read_strange(ood, local.profiles)
        if ood is None and (strange := built_in_strange(local.profiles, known)):
            note(f"--ood is not given: {len(strange)} strange requests of this project are used")
        setting = _setting(local, goal)
        few = len(known) <= min(MOST_LEARNED, LEARNED_EACH * len(local.profiles))
        path = output or local.settings.adapter_folders[0] / FILE_NAME
        needed: int | None = None
        ballots = None if few else _ballots(local, known, strange, votes)
        try:
            if learn:
                raise Unproven("classifiers learn the requests, so that no proof is left")
            found, kept = _proven(fitting, known, strange, setting, ballots)
            refused = ""
        except Unproven as error:
            refused = error.message
            found, needed = _offered(fitting, known, strange, setting, None if learn else ballots)
            kept = StoredRows.of((), known, strange)
    written = accept or not refused
    if written:
        found = _with_rows(path, found, kept)
        write_calibration(path, found)
    if json:
        said = {"file": path if written else None, "target": found.target, "ood_target": found.ood_target}
        print_json({**said, **found.report, "threshold": found.threshold, "needed": needed})
    else:
        _print(found)
        if refused:
            _print_offer(found, needed, goal)
        elif few:
            _print_hint(found)
        if written:
            print(f"\nwrote {path}; a running server reads it within seconds")
    if not written:
        raise CliError(f"nothing was written; --accept takes what is shown. {refused}")


def _ballots(
    local: LocalRouting, known: list[DataRow], strange: list[DataRow], votes: Path | None
) -> Ballots:
    return local.votes(known, "requests", votes), local.votes(strange, "out-of-distribution", votes)


def built_in_strange(profiles: Sequence[AdapterProfile], known: Sequence[DataRow]) -> list[DataRow]:
    """The strange requests of this project that no adapter and no labelled request has; none where the
    package came without its plugins."""
    from router.built_in import built_in_folders
    from router.classifiers.regression import read_background
    from router.extensions.calibration.rows import DataRow, distinct, unseen

    paths = [path for folder in built_in_folders("plugins") if (path := folder / STRANGERS).is_file()]
    rows = distinct(
        DataRow(text, "", "built in") for path in paths for text in read_background(path, profiles)
    )
    examples = (text for p in profiles for text in (*p.examples, *p.negative_examples))
    return unseen(rows, {*examples, *(row.text for row in known)})


def _with_rows(path: Path, of: Calibration, kept: StoredRows) -> Calibration:
    """The calibration, once the rows that `route learn` proves it on again are in the file beside it."""
    from dataclasses import replace

    from router.corrections.store import write_whole
    from router.extensions.calibration.rows import DIGEST, digest, path_of

    data = kept.written()
    write_whole(path_of(path), data)
    return replace(of, report={**of.report, DIGEST: digest(data)})


def _proven(
    fitting: Fitting,
    known: list[DataRow],
    strange: list[DataRow],
    setting: Setting,
    ballots: Ballots | None,
) -> tuple[Calibration, StoredRows]:
    """A calibration with a proof, and its rows. Without `ballots`, classifiers learn the requests that are
    not for the proof. Raises Unproven."""
    from dataclasses import replace

    from router.extensions.calibration.certify import require_enough
    from router.extensions.calibration.commands.local import note
    from router.extensions.calibration.fit import calibrate, prove, split_rows
    from router.extensions.calibration.rows import Ballot, StoredRows

    sides = tuple(split_rows([Ballot(row, ()) for row in rows]) for rows in (known, strange))
    fit, test = (tuple([ballot.row for ballot in side[part]] for side in sides) for part in (0, 1))
    if ballots is not None:
        return calibrate(*ballots, setting, say=note), StoredRows.of(fit[0], *test)
    require_enough(len(test[0]), len(test[1]), setting.goal)
    note(f"classifiers learn {len(fit[0])} of the requests, fold by fold")
    learned = _examples(fit[0])
    fit_votes = without_their_own(fitting, fitting.profiles, fit[0], fit[1])
    taught = fitting.fitted(fitting.profiles, learned)
    test_votes = taught.votes(test[0], "requests"), taught.votes(test[1], "out-of-distribution")
    found = prove(fit_votes, test_votes, setting, note)
    return replace(found, learned=learned), StoredRows.of((), *test)


def _setting(local: LocalRouting, goal: Goal) -> Setting:
    from router.calibration.model import Axes
    from router.extensions.calibration.fit import Setting

    return Setting(
        classifiers=local.fitted.names,
        kinds=local.kinds,
        axes=Axes(local.settings.task_first, local.settings.domain_first),
        goal=goal,
        binding=local.binding(),
        left_out=tuple(local.fitted.skipped),
        profiles=local.profiles,
    )


# -- what is offered where the target cannot be proven


def _offered(
    fitting: Fitting,
    known: list[DataRow],
    strange: list[DataRow],
    setting: Setting,
    ballots: Ballots | None,
) -> tuple[Calibration, int | None]:
    """The best that the requests support. Without `ballots`, classifiers learn the requests, too, and each is
    judged by classifiers that did not learn it."""
    from dataclasses import replace

    from router.extensions.calibration.commands.local import note
    from router.extensions.calibration.offer import offer

    learned = {} if ballots is not None else _examples(known)
    if ballots is None:
        note(f"no proof; classifiers learn all {len(known)} requests, fold by fold")
        ballots = without_their_own(fitting, fitting.profiles, known, strange)
    found = offer(*ballots, setting, _general(setting) if learned else None)
    return replace(found.calibration, learned=learned), found.needed


def _general(setting: Setting) -> Calibration | None:
    """The built-in weights, where all classifiers that they weigh are here."""
    from router.calibration.file import read_calibration
    from router.routing.policy import WEIGHTS

    weights = read_calibration(WEIGHTS)
    return weights if set(weights.scalers) <= set(setting.classifiers) else None


def _examples(rows: Sequence[DataRow]) -> dict[str, tuple[str, ...]]:
    """The requests of each adapter."""
    labels = sorted({row.label for row in rows} - {""})
    return {label: tuple(row.text for row in rows if row.label == label) for label in labels}


def without_their_own(
    fitting: Fitting,
    profiles: tuple[AdapterProfile, ...],
    known: Sequence[DataRow],
    strange: Sequence[DataRow],
) -> Ballots:
    """Votes on all rows, on each of classifiers that learned the rows of the other folds."""
    from router.extensions.calibration.fit import FOLDS
    from router.extensions.calibration.rows import stratified_folds

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


def _print_hint(found: Calibration) -> None:
    if found.report["held_out"]["coverage"] < LOW_COVERAGE:
        print("\nfew requests are routed: --learn routes more, by an estimate instead of a proof")


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
