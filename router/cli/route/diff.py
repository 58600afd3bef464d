"""`lora-router route diff`: what a new adapter would take from those here, before it is installed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from router.cli import flags
from router.cli.route.judge import CalibrationFile
from router.cli.route.local import AdaptersDirs, Base, PluginsDirs

if TYPE_CHECKING:
    from router.calibration.rows import Row
    from router.types import AdapterProfile

Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="[FILE...]", help="More requests, JSON lines.", show_default=False),
]
With = Annotated[
    Path, typer.Option("--with", metavar="FOLDER", help="The adapter folder to try.", show_default=False)
]
SHOWN = 70  # characters of a request


def diff(
    with_: With,
    files: Files = None,
    calibration: CalibrationFile = "auto",
    adapters_dir: AdaptersDirs = None,
    plugins_dir: PluginsDirs = None,
    base: Base = True,
    json: flags.Json = False,
) -> None:
    """Show which known requests a new adapter would take, and from whom.

    Known are the examples of all adapters and the requests of FILE. Nothing is installed.

    \b
    Example:
      lora-router route diff --with my-adapter requests.jsonl
    """
    from router.cli.output import print_json
    from router.cli.route.judge import judge_of, local_rule
    from router.cli.route.local import open_local, read_profile

    new = read_profile(with_)
    with open_local(adapters_dir, plugins_dir, base=base) as before:
        rows = known_rows(before.profiles, new, files or [])
        judge = judge_of(local_rule(before, calibration), before, trusting=True)
        then = [judge(ballot.votes) for ballot in before.votes(rows, "before")]
    with open_local(adapters_dir, plugins_dir, [new], base=base) as after:
        judge = judge_of(local_rule(after, calibration), after, trusting=True)
        now = [judge(ballot.votes) for ballot in after.votes(rows, "after")]
    moved = [
        asdict(row) | {"from": one.routed, "to": other.routed, "confidence": other.confidence}
        for row, one, other in zip(rows, then, now, strict=True)
        if one.routed != other.routed
    ]
    if json:
        print_json({"adapter": new.name, "known": len(rows), "moved": moved})
    else:
        _print(new.name, len(rows), moved)


def known_rows(profiles: Sequence[AdapterProfile], new: AdapterProfile, files: Sequence[Path]) -> list[Row]:
    """Examples of all adapters, negative ones as requests for the base, and requests of files."""
    from router.calibration.rows import Row, read_rows

    everyone = [*(p for p in profiles if p.name != new.name), new]
    rows = [Row(text, p.name, f"example of {p.name}") for p in everyone for text in p.examples]
    names = {p.name for p in everyone}
    rows += [row for path in files for row in read_rows(path, names, "")]
    seen: dict[str, Row] = {}
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
    print(f"\n{len(moved)} of {known} known requests would move; calibrate again after it is installed")
