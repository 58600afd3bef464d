"""`lora-router route diff`: what a new adapter would take from those here, before it is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.extensions.calibration.commands.judge import CalibrationFile
from router.extensions.calibration.commands.local import Base, PluginsDirs

if TYPE_CHECKING:
    from router.extensions.calibration.commands.local import LocalRouting
    from router.extensions.calibration.rows import Ballot, DataRow
    from router.routing.policy import Conclusion
    from router.types import AdapterProfile

Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE...]", help="More requests, JSON lines.", show_default=False),
]
With = Annotated[
    Path, typer.Option("--with", metavar="FOLDER", help="The adapter folder to try.", show_default=False)
]
SHOWN = 70  # characters of a request
MOST_TRIED = 40  # examples of the new adapter


def diff(
    with_: With,
    files: Files = None,
    calibration: CalibrationFile = "auto",
    adapters_dir: flags.AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    json: flags.Json = False,
) -> None:
    """Show which known requests a new adapter would take, and from whom.

    Known are the examples of all adapters and the requests of FILE. Where a calibration does not know the
    adapter, each of its own examples is tried as though it were not one. Nothing is installed.

    \b
    Example:
      lora-router route diff --with my-adapter requests.jsonl
    """
    from router.cli.output import print_json
    from router.extensions.calibration.commands.local import open_local, read_profile

    new = read_profile(with_)
    with open_local(adapters_dir, plugins_dir, base=base, calibration=calibration) as before:
        rows = known_rows(before.profiles, new, files or [])
        then = concluded(before, calibration, before.votes(rows, "before"))
    with open_local(adapters_dir, plugins_dir, [new], base=base, calibration=calibration) as after:
        now = concluded(after, calibration, after.votes(rows, "after"))
        own = unseen_examples(after, calibration, new)
    moved = [
        asdict(row) | {"from": one.adapter, "to": other.adapter, "confidence": other.confidence}
        for row, one, other in zip(rows, then, now, strict=True)
        if one.adapter != other.adapter
    ]
    if json:
        print_json({"adapter": new.name, "known": len(rows), "moved": moved, "own": own})
    else:
        _print(new.name, len(rows), moved)
        if own:
            print(
                f"of {own['tried']} examples of {new.name}, each tried as though it were not one, "
                f"{own['routed']} would come to it and {own['elsewhere']} to other adapters, by its own "
                "examples alone; `route calibrate` with labelled requests finds more"
            )


def concluded(local: LocalRouting, calibration: str, ballots: Sequence[Ballot]) -> list[Conclusion]:
    """What a server would decide, without the strictness for a set that was not calibrated."""
    from router.extensions.calibration.commands.judge import local_rule
    from router.routing.policy import CalibratedRule

    rule = local_rule(local, calibration).now
    if isinstance(rule, CalibratedRule):
        rule = replace(rule, differences=())
    names = frozenset(profile.name for profile in local.profiles)
    return [rule.conclude(ballot.votes, names) for ballot in ballots]


def unseen_examples(local: LocalRouting, calibration: str, new: AdapterProfile) -> dict[str, int]:
    """How a newcomer's own examples are routed, each left out of what classifiers that scale have learned;
    empty where they do not decide."""
    from router.classifiers.regression import spread_evenly
    from router.cli.output import track
    from router.extensions.calibration.commands.judge import local_rule
    from router.extensions.calibration.rows import DataRow
    from router.routing.policy import CalibratedRule

    rule = local_rule(local, calibration).now
    scaling = [r for r in local.fitted.registrations if r.classifier.scales]
    if not isinstance(rule, CalibratedRule) or new.name not in rule.newcomers or not scaling:
        return {}
    others = [profile for profile in local.profiles if profile.name != new.name]
    went: list[str] = []
    tried = spread_evenly(new.examples, MOST_TRIED)
    for text in track(tried, "examples left out"):
        without = replace(new, examples=tuple(other for other in new.examples if other != text))
        for registration in scaling:
            registration.classifier.fit([*others, without])
        ballots = local.votes([DataRow(text, new.name)], "")
        went += [found.adapter for found in concluded(local, calibration, ballots)]
    own = went.count(new.name)
    return {"tried": len(tried), "routed": own, "elsewhere": len(tried) - own - went.count("")}


def known_rows(
    profiles: Sequence[AdapterProfile], new: AdapterProfile, files: Sequence[Path]
) -> list[DataRow]:
    """Examples of all adapters, negative ones as requests for the base, and requests of files."""
    from router.extensions.calibration.rows import DataRow, read_rows

    everyone = [*(p for p in profiles if p.name != new.name), new]
    rows = [DataRow(text, p.name, f"example of {p.name}") for p in everyone for text in p.examples]
    names = {p.name for p in everyone}
    rows += [row for path in files for row in read_rows(path, names, "")]
    seen: dict[str, DataRow] = {}
    for row in rows:
        seen.setdefault(row.text, row)
    return list(seen.values())


def _print(name: str, known: int, moved: Sequence[dict[str, Any]]) -> None:
    from router.cli.output import print_table

    if not moved:
        print(f"{name} would take none of {known} known requests")
        return
    ways = Counter((move["from"], move["to"]) for move in moved)
    print_table(
        ["FROM", "TO", "REQUESTS"],
        [(a or "(base)", b or "(base)", str(n)) for (a, b), n in ways.most_common()],
    )
    print()
    print_table(
        ["FROM", "TO", "CONFIDENCE", "SOURCE", "REQUEST"],
        [
            (
                m["from"] or "(base)",
                m["to"] or "(base)",
                f"{m['confidence']:.2f}",
                m["source"],
                m["text"][:SHOWN],
            )
            for m in moved
        ],
    )
    print(f"\n{len(moved)} of {known} known requests would move")
