"""`lora-router route learn`: examples out of corrections, and what they would change, before it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, time, timedelta
from functools import partial
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.command import MISUSED, CliError
from router.errors import RouterError
from router.extensions.calibration.commands.judge import CalibrationFile
from router.extensions.calibration.commands.local import Base, PluginsDirs
from router.extensions.calibration.commands.refit import Present, present, refit

if TYPE_CHECKING:
    from router.calibration.model import Calibration
    from router.corrections.store import Correction
    from router.extensions.calibration.commands.local import Fitting
    from router.extensions.calibration.evaluation import Decided
    from router.extensions.calibration.learning import Judge, Learned
    from router.extensions.calibration.proposals import Addition, Proposals
    from router.extensions.calibration.rows import DataRow
    from router.types import AdapterProfile

Files = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[FILE...]",
        help="Corrections, JSON lines. Default: those that a server over the adapters here has kept.",
        show_default=False,
    ),
]
Rows = Annotated[
    list[Path] | None,
    typer.Option(
        "--rows",
        metavar="FILE",
        help="Labelled requests that nothing may make worse; repeatable. Default: those that the calibration "
        "keeps and was fitted on, else recipes/routing/dev.jsonl, where it is here.",
        show_default=False,
    ),
]
HoldBack = Annotated[
    float, typer.Option("--hold-back", metavar="P", help="Share of the corrections that is only tested on.")
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="ID", help="Only those of this tenant.", show_default=False)
]
Write = Annotated[bool, typer.Option("--write", help="Add the examples to the adapters' adapter.toml.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FOLDER", help="Write the changed adapter.toml there, as NAME/adapter.toml, instead."
    ),
]
Auto = Annotated[
    bool,
    typer.Option("--auto", help="As --write, every night until stopped, from what was corrected by then."),
]
At = Annotated[str, typer.Option("--at", metavar="HH:MM", help="When with --auto, in local time.")]
DEV = Path("recipes/routing/dev.jsonl")
MANIFEST, SIGNATURE = "adapter.toml", "adapter.sig"
SHOWN, MOST_SHOWN = 60, 40  # characters of a request, requests that moved


def learn(
    files: Files = None,
    rows: Rows = None,
    hold_back: HoldBack = 0.25,
    tenant: Tenant = None,
    write: Write = False,
    out: Out = None,
    auto: Auto = False,
    at: At = "03:00",
    calibration: CalibrationFile = "auto",
    adapters_dir: flags.AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    json: flags.Json = False,
) -> None:
    """Propose examples from corrections, and show what they would change.

    Classifiers are fitted with and without them, adapter by adapter; what makes held-out requests worse is
    left out. Nothing is written without --write or --out. The calibration is proven again on the requests
    that it keeps, and written too. Where it would not keep its target nothing is, and the command shows the
    requests that stand against it. A running server takes all of it within a minute.

    \b
    Examples:
      lora-router route learn
      lora-router route learn corrections.jsonl --rows requests.jsonl --write
      lora-router route learn --auto --at 03:00
    """
    _check(hold_back, write or auto, out)
    once = partial(
        _learn_once,
        files or [],
        rows,
        hold_back,
        tenant,
        write or auto,
        out,
        calibration,
        adapters_dir,
        plugins_dir,
        base,
        json,
    )
    if auto:
        _every_night(_time_of_day(at), once)
    else:
        once()


def _time_of_day(said: str) -> time:
    try:
        return datetime.strptime(said, "%H:%M").time()
    except ValueError:
        raise CliError(f"--at {said}: must be a time of the day, such as 03:00", MISUSED) from None


def _every_night(at: time, once: Callable[[], None]) -> None:
    """Until the process is stopped. A night that fails prints its error, and the next night tries again."""
    from router.extensions.calibration.commands.local import note

    while True:
        wait = seconds_until(at, datetime.now())
        note(f"the next corrections are learned at {at:%H:%M}, in {wait / 3600:.1f} hours")
        sleep(wait)
        try:
            once()
        except (CliError, RouterError, OSError) as error:
            note(f"{datetime.now():%Y-%m-%d %H:%M}: {getattr(error, 'message', error)}")


def seconds_until(at: time, now: datetime) -> float:
    """From `now` to the next time that the clock shows `at`; more than 0, at most a day."""
    then = datetime.combine(now, at)
    return ((then if then > now else then + timedelta(days=1)) - now).total_seconds()


def _learn_once(
    files: Sequence[Path],
    rows: list[Path] | None,
    hold_back: float,
    tenant: str | None,
    write: bool,
    out: Path | None,
    calibration: str,
    adapters_dir: list[Path] | None,
    plugins_dir: list[Path] | None,
    base: bool,
    json: bool,
) -> None:
    from router.cli.output import print_json
    from router.extensions.calibration.commands.local import find_profiles, note, open_fitting
    from router.extensions.calibration.learning import learn as tried

    corrections = read_corrections(files, tenant, adapters_dir)
    with open_fitting(adapters_dir, plugins_dir, base=base) as fitting:
        here = present(fitting, calibration)
        held_out = _held_out(rows, fitting.profiles, here)
        away = [*(row.text for row in held_out), *(here.texts if here else ())]
        found = proposed(corrections, fitting.profiles, away, hold_back)
        tested = [*held_out, *_as_rows(found.held_back, "held back")]
        if not tested:
            raise CliError(
                "nothing to test on: name labelled requests with --rows, or raise --hold-back", MISUSED
            )
        asked = [*tested, *_as_rows(found.requests, "learned from")]
        judge = _judge(fitting, asked, calibration, here.of.learned if here else {})
        learned = tried(judge, fitting.profiles, found.additions, tested, note)
        again = None
        if (write or out) and learned.kept and here is not None and here.rows is not None:
            again = refit(fitting, here.of, here.rows, learned.kept)
    folders = {name: folder for name, (_, folder) in find_profiles(fitting.settings.adapter_folders).items()}
    written: tuple[Path, ...] = ()
    if (write or out) and (again is None or again.calibration is not None):
        written = _written(learned.kept, folders, out)
        if again is not None and again.calibration is not None and here is not None:
            written = (*written, _write_calibration(here, again.calibration, out))
    told = report(found, learned, tested, len(held_out), written)
    told["calibration"] = again.told() if again is not None else None
    if json:
        print_json(told)
    else:
        _print(told)
        _print_written(told, in_place=out is None, calibrated=here is not None)
    if again is not None and again.calibration is None:
        raise CliError(f"nothing was written: the calibration would not keep its target: {again.why}")


def _check(hold_back: float, write: bool, out: Path | None) -> None:
    if not 0 <= hold_back < 1:
        raise CliError(f"--hold-back is {hold_back}: it must lie from 0 to below 1", MISUSED)
    if write and out is not None:
        raise CliError("--write changes the adapters here, --out FOLDER writes elsewhere: say one", MISUSED)


def read_corrections(
    files: Sequence[Path], tenant: str | None, adapters_dir: list[Path] | None
) -> list[Correction]:
    """Of the files, else of the server's. Raises CliError where there are none."""
    from router.cli.route import checked_tenant, store_here
    from router.corrections.store import from_line, latest
    from router.extensions.calibration.commands.local import note

    tenant = checked_tenant(tenant)
    if not files:
        kept = store_here(adapters_dir).read(tenant)
        found, damaged = list(kept.corrections), kept.damaged
    else:
        lines = [line for path in files for line in path.read_bytes().split(b"\n") if line.strip()]
        read = [from_line(line) for line in lines]
        found = latest(one for one in read if one is not None and tenant in (None, one.tenant))
        damaged = read.count(None)
    if damaged:
        note(f"{damaged} lines are no corrections and are left out")
    if not found:
        where = (
            "in " + ", ".join(map(str, files)) if files else "here; `serve --corrections texts` keeps them"
        )
        raise CliError(f"there are no corrections {where}")
    return found


def _held_out(
    said: list[Path] | None, profiles: Sequence[AdapterProfile], here: Present | None
) -> list[DataRow]:
    from router.calibration.model import CalibrationError
    from router.extensions.calibration.commands.local import note, read_known

    if said:
        return read_known(said, profiles)
    if here is not None and here.rows is not None:
        return list(here.rows.fit)
    if not DEV.is_file():
        return []
    try:
        return read_known([DEV], profiles)
    except CalibrationError as error:
        note(f"not tested on the requests of this project: {error.message}")
        return []


def proposed(
    corrections: Sequence[Correction],
    profiles: Sequence[AdapterProfile],
    held_out: Sequence[str],
    hold_back: float,
) -> Proposals:
    """What could be learned, apart from what is nearly a text in `held_out`. Raises CliError where that is
    nothing."""
    from router.extensions.calibration.proposals import propose
    from router.registry.format.untrusted import MAX_EXAMPLES

    found = propose(corrections, profiles, held_out, hold_back, MAX_EXAMPLES)
    if not found.additions:
        why = "; ".join(f"{count} {reason}" for reason, count in sorted(found.left_out.items()))
        back = f"; {len(found.held_back)} are held back" if found.held_back else ""
        raise CliError(f"nothing to learn from {len(corrections)} corrections: {why or 'none is left'}{back}")
    return found


def _as_rows(requests: Sequence[Any], source: str) -> list[DataRow]:
    from router.extensions.calibration.rows import DataRow

    return [DataRow(labelled.text, labelled.label, source) for labelled in requests]


def _judge(
    fitting: Fitting, rows: Sequence[DataRow], calibration: str, more: Mapping[str, tuple[str, ...]]
) -> Judge:
    """By the calibration here as though it had been made with these examples: after a change none is."""
    from router.extensions.calibration.commands.judge import judge_of, local_rule

    def decided(profiles: Sequence[AdapterProfile]) -> list[Decided]:
        local = fitting.fitted(tuple(profiles), more)
        judge = judge_of(local_rule(local, calibration), local, trusting=True)
        return [judge(ballot.votes) for ballot in local.votes(rows, "requests")]

    return decided


# -- what is written


def _written(kept: Mapping[str, Addition], folders: Mapping[str, Path], out: Path | None) -> tuple[Path, ...]:
    """All of them, or none where one cannot be made."""
    from router.corrections.store import write_whole

    made = {
        name: _changed(folders[name], addition, signed_too=out is not None) for name, addition in kept.items()
    }
    paths = []
    for name, data in made.items():
        path = (folders[name] if out is None else out / name) / MANIFEST
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data, mode=(folders[name] / MANIFEST).stat().st_mode & 0o777)
        paths.append(path)
    return tuple(paths)


def _write_calibration(here: Present, new: Calibration, out: Path | None) -> Path:
    """In the place of the one before, or in the folder `out` with the rows that it keeps."""
    from router.calibration.file import write_calibration
    from router.corrections.store import write_whole
    from router.extensions.calibration.rows import path_of

    path = here.path if out is None else out / here.path.name
    if out is not None:
        write_whole(path_of(path), path_of(here.path).read_bytes())
    write_calibration(path, new)
    return path


def _changed(folder: Path, addition: Addition, signed_too: bool) -> bytes:
    """The manifest with the addition. Raises CliError for one that could not be served."""
    from router.errors import ConfigError
    from router.extensions.calibration.manifest import with_examples
    from router.registry.format.manifest import parse_manifest
    from router.registry.format.untrusted import Severity

    path = folder / MANIFEST
    if not signed_too and (folder / SIGNATURE).exists():
        raise CliError(f"{folder} is signed: write with --out FOLDER, put it in place and sign it again")
    try:
        data = with_examples(path.read_bytes().decode("utf-8"), addition).encode()
    except (ConfigError, UnicodeDecodeError) as error:
        raise CliError(f"{path}: {getattr(error, 'message', error)}") from None
    refused = [f for f in parse_manifest(data, folder.resolve().name)[1] if f.severity is Severity.REFUSE]
    if refused:
        raise CliError(f"{path} would be refused with them: {refused[0]}")
    return data


# -- what is told


def report(
    found: Proposals, learned: Learned, tested: Sequence[DataRow], rows: int, written: Sequence[Path]
) -> dict[str, Any]:
    """All of it; `rows` of those tested on are no corrections."""
    from router.extensions.calibration.learning import score_of

    back, taught = tested[rows:], _as_rows(found.requests, "learned from")
    parts = {
        "held_out": (tested, 0),
        "corrections_held_back": (back, rows),
        "corrections_learned_from": (taught, len(tested)),
    }
    scores = {
        name: {
            when: score_of(part, decided[start : start + len(part)])
            for when, decided in (("before", learned.before), ("after", learned.after))
        }
        for name, (part, start) in parts.items()
    }
    return {
        "corrections": {
            "learned_from": len(found.requests),
            "held_back": len(found.held_back),
            "left_out": dict(sorted(found.left_out.items())),
        },
        "tried": [asdict(one) for one in learned.tried],
        "scores": {name: {when: asdict(one) for when, one in of.items()} for name, of in scores.items()},
        "moved": _moved([*tested, *taught], learned),
        "written": list(written),
    }


def _moved(rows: Sequence[DataRow], learned: Learned) -> list[dict[str, Any]]:
    return [
        {"text": row.text, "label": row.label, "source": row.source, "from": one.routed, "to": other.routed}
        for row, one, other in zip(rows, learned.before, learned.after, strict=True)
        if one.routed != other.routed
    ]


def _print(told: Mapping[str, Any]) -> None:
    from router.cli.output import print_pairs, print_table

    said = told["corrections"]
    pairs = [
        ("learned from", f"{said['learned_from']} corrections"),
        ("held back", f"{said['held_back']} of them"),
    ]
    pairs += [("left out", f"{count} {why}") for why, count in said["left_out"].items()]
    print_pairs(pairs)
    print("\non held-out requests, each adapter's examples with those kept before it")
    print_table(
        ["ADAPTER", "EXAMPLES", "NEGATIVE", "RIGHT", "WRONG", ""], [_tried(one) for one in told["tried"]]
    )
    print()
    print_table(
        ["", "REQUESTS", "RIGHT", "WRONGLY ROUTED", "ROUTED", "RIGHT IF FORCED TO CHOOSE"],
        [
            _score(name.replace("_", " "), of)
            for name, of in told["scores"].items()
            if of["before"]["requests"]
        ],
    )
    _print_moved(told["moved"])


def _print_written(told: Mapping[str, Any], in_place: bool, calibrated: bool) -> None:
    print()
    paths, again = told["written"], told["calibration"]
    if again is not None and not again["taken"]:
        _print_against(again["against"])
        return
    if not paths:
        print("nothing was written: --write adds what is kept to the adapters here, --out FOLDER to copies")
        return
    for path in paths:
        print(f"wrote {path}")
    when = "" if in_place else "once they are in place, "
    if again is not None:
        proof = again["proof"]
        print(
            f"the calibration holds: {proof['errors']} of {proof['routed']} wrong, under "
            f"{proof['error_bound']:.1%}; {when}a running server takes all of it within a minute"
        )
    elif calibrated:
        print(
            f"{when}a calibration takes these adapters for newcomers; this one keeps no requests to be "
            "proven on, since an older version made it: run `lora-router route calibrate` again"
        )
    else:
        print(f"{when}a running server takes them within a minute")


def _print_against(against: Sequence[Mapping[str, str]]) -> None:
    from router.cli.output import print_table

    print("requests that stand against it: with the new examples they go to a wrong adapter")
    print_table(
        ["REQUEST", "TO", "SHOULD BE"],
        [(one["text"][:SHOWN], one["to"], one["label"] or "base") for one in against[:MOST_SHOWN]],
    )
    if len(against) > MOST_SHOWN:
        print(f"and {len(against) - MOST_SHOWN} more, which --json lists")


def _tried(one: Mapping[str, Any]) -> tuple[str, ...]:
    addition, before, after = one["addition"], one["before"], one["after"]
    return (
        one["adapter"],
        f"+{len(addition['examples'])}",
        f"+{len(addition['negative_examples'])}",
        f"{before['right']} to {after['right']}",
        f"{before['wrong']} to {after['wrong']}",
        "kept" if one["kept"] else "left out: it makes held-out requests worse",
    )


def _score(name: str, of: Mapping[str, Mapping[str, int]]) -> tuple[str, ...]:
    before, after = of["before"], of["after"]
    changes = (f"{before[key]} to {after[key]}" for key in ("right", "wrong", "routed"))
    forced = f"{before['forced']} to {after['forced']} of {after['meant']}"
    return (name, str(after["requests"]), *changes, forced)


def _print_moved(moved: Sequence[Mapping[str, Any]]) -> None:
    from router.cli.output import print_table

    if not moved:
        print("\nno request would go elsewhere")
        return
    print(f"\n{len(moved)} requests would go elsewhere")
    print_table(
        ["REQUEST", "", "FROM", "TO", "SHOULD BE"],
        [
            (m["text"][:SHOWN], m["source"], m["from"] or "base", m["to"] or "base", m["label"] or "base")
            for m in moved[:MOST_SHOWN]
        ],
    )
    if len(moved) > MOST_SHOWN:
        print(f"and {len(moved) - MOST_SHOWN} more, which --json lists")
