"""The calibration that `route learn` makes again, once adapters have further examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from router.calibration.model import Calibration
    from router.extensions.calibration.commands.local import Fitting, LocalRouting
    from router.extensions.calibration.fit import Setting
    from router.extensions.calibration.proposals import Addition
    from router.extensions.calibration.rows import Ballot, StoredRows
    from router.types import AdapterProfile


@dataclass(frozen=True, slots=True)
class Present:
    """The calibration here with its own targets, its file, and the rows that it keeps; None: an older version
    made it, which kept none."""

    of: Calibration
    path: Path
    rows: StoredRows | None

    @property
    def texts(self) -> list[str]:
        """Of the rows for the proof."""
        return [row.text for row in (*self.rows.known, *self.rows.strange)] if self.rows else []


def present(fitting: Fitting, said: str) -> Present | None:
    """None where there is no calibration. Raises ConfigError for files that cannot be used."""
    from router.calibration.file import read_calibration
    from router.cli.settings import find_calibration
    from router.extensions.calibration.rows import DIGEST, read_stored

    path = find_calibration(said, fitting.settings.adapter_folders)
    if path is None:
        return None
    of = read_calibration(path)
    return Present(of, path, read_stored(path, str(of.report.get(DIGEST, ""))))


@dataclass(frozen=True, slots=True)
class Refit:
    """`calibration` is None where the target would not hold: `why` says so, and `against` which requests are
    wrong with the new examples and were not without, each with the adapter that would get it."""

    calibration: Calibration | None
    why: str = ""
    against: tuple[tuple[str, str, str], ...] = ()  # text, label, adapter

    def told(self) -> dict[str, Any]:
        """For --json."""
        keys = ("text", "label", "to")
        proof = None if self.calibration is None else self.calibration.report["proof"]
        return {
            "taken": self.calibration is not None,
            "why": self.why,
            "against": [dict(zip(keys, one, strict=True)) for one in self.against],
            "proof": proof,
        }


def refit(fitting: Fitting, of: Calibration, rows: StoredRows, additions: Mapping[str, Addition]) -> Refit:
    """The calibration proven on its rows with the adapters as they would be.

    Raises CalibrationError where that cannot be tried: other classifiers, adapters that are gone.
    """
    from router.extensions.calibration.commands.local import note
    from router.extensions.calibration.learning import taught
    from router.extensions.calibration.offer import METHOD
    from router.extensions.calibration.refit import TargetBroken, prove_again

    now = {p.name: p for p in (*of.profiles, *taught(fitting.profiles, additions))}
    core = tuple(now[name] for name in sorted(of.binding.adapters))
    note(f"proving the calibration on the {len(rows.known)} and {len(rows.strange)} requests that it keeps")
    if of.report.get("method") == METHOD:
        return _offered_again(fitting, of, rows, core)
    local = fitting.fitted(core, of.learned)
    votes = local.votes(rows.known, "requests"), local.votes(rows.strange, "out-of-distribution")
    setting = _setting(local, of)
    try:
        return Refit(prove_again(of, *votes, setting).calibration)
    except TargetBroken as error:
        before = fitting.fitted(of.known(()), of.learned)
        votes_before = before.votes([ballot.row for ballot in error.against], "as it is")
        right = [one for one, old in zip(error.against, votes_before, strict=True) if not _is_wrong(of, old)]
        return Refit(None, error.message, _told(of, right or error.against))


def _offered_again(
    fitting: Fitting, of: Calibration, rows: StoredRows, core: tuple[AdapterProfile, ...]
) -> Refit:
    """By cross-validation, as it was made."""
    from router.calibration.targets import Goal
    from router.extensions.calibration.commands.calibrate import without_their_own
    from router.extensions.calibration.offer import offer

    votes = without_their_own(fitting, core, rows.known, rows.strange)
    local = fitting.fitted(core, of.learned)
    setting = replace(_setting(local, of), goal=Goal(**of.report["asked"]))
    found = offer(*votes, setting)
    new = found.calibration
    if new.target > of.target or new.ood_target > of.ood_target:
        why = (
            f"its requests would support {new.target:.1%} and {new.ood_target:.1%} of strange requests "
            f"routed, not {of.target:.1%} and {of.ood_target:.1%} as now"
        )
        return Refit(None, why, _told(new, found.wrong))
    report = {**new.report, **{key: of.report[key] for key in ("rows",) if key in of.report}}
    kept = replace(new, learned=of.learned, target=of.target, ood_target=of.ood_target, report=report)
    return Refit(kept)


def _setting(local: LocalRouting, of: Calibration) -> Setting:
    from router.calibration.targets import Goal
    from router.extensions.calibration.fit import Setting

    return Setting(
        classifiers=local.fitted.names,
        kinds=local.kinds,
        axes=of.axes,
        goal=Goal(of.target, of.delta, of.ood_target),
        binding=local.binding(),
        left_out=of.left_out,
        profiles=local.profiles,
    )


def _told(of: Calibration, ballots: Sequence[Ballot]) -> tuple[tuple[str, str, str], ...]:
    return tuple((ballot.row.text, ballot.row.label, _routed(of, ballot)) for ballot in ballots)


def _is_wrong(of: Calibration, ballot: Ballot) -> bool:
    return _routed(of, ballot) not in ("", ballot.row.label)


def _routed(of: Calibration, ballot: Ballot) -> str:
    """The adapter that the thresholds of `of` give it; "" for the base."""
    from router.calibration.model import axes_of
    from router.extensions.calibration.cascade import outcome_at, run_cascade

    kinds = axes_of(of.known(()))
    run = run_cascade([ballot], of.stages, of.scalers, of.axes, kinds)
    there = outcome_at(run, [stage.stop for stage in of.stages], of.threshold, of.novelty_limit)
    return tuple(kinds)[int(run.choice[0, int(there.stage[0])])] if there.routed[0] else ""
