"""Benchmarks that are measured in sections, one by one: their page keeps the newest of each.

Beside the page NAME.md stands NAME.json with what was measured. A section that cannot be measured leaves a
line that says why.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contestants import Died, Entry, Field, Missing, told
from router.quantities import counted


@dataclass(frozen=True, slots=True)
class Section:
    """What one section found, or why it was left out (`skipped`).

    `contestants` and `notes`: as `Field` has them.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    contestants: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    rounds: int = 0
    date: str = ""
    machine: str = ""


Sections = Mapping[str, Section]


def measure(
    work: Mapping[str, Callable[[], Section]],
    page: Path,
    text: Callable[[Sections], str],
    *,
    rounds: int = 0,
    write: bool = True,
) -> None:
    """Measure one section after the other, write the page anew after each, and print it.

    Without `write` only these sections are on the page, and it is printed only.
    """
    sections = known(page) if write else {}
    for name, section in work.items():
        with told(f"{page.stem}: {name}", None):
            found = _measured(section, rounds)
        sections |= {name: found}
        print(f"{name}: {found.skipped or 'measured'}", file=sys.stderr)
        if write:
            kept = {key: asdict(one) for key, one in sections.items()}
            page.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n")
            page.write_text(text(sections))
            print("written to", page, file=sys.stderr)
    print(text(sections))


def _measured(section: Callable[[], Section], rounds: int) -> Section:
    """One section; where it cannot be measured, why."""
    try:
        found = section()
    except (Missing, Died) as error:
        found = Section(skipped=str(error))
    now = datetime.now(UTC).isoformat(timespec="minutes")
    return replace(found, rounds=rounds, date=now, machine=_machine())


def alone(entry: Entry, loads: Callable[[Field, Entry], dict[str, Any]]) -> Section:
    """One contestant, alone on the machine, for the loads."""
    with Field() as field:
        about = field.start(entry)
        facts = loads(field, entry) | {"resident": field.resident(entry.name)}
        facts |= {name: about[name] for name in ("kernels", "precision") if name in about}
        return Section(facts, field.rows(), field.notes())


def known(page: Path) -> dict[str, Section]:
    """The sections that were measured, the newest of each."""
    file = page.with_suffix(".json")
    found = json.loads(file.read_text()) if file.exists() else {}
    return {name: Section(**section) for name, section in found.items()}


def tables(named: Iterable[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    """Lines of a page: a heading and a table for each that has rows."""
    return [line for title, rows in named if rows for line in ("", f"## {title}", "", report.table(rows))]


def abouts(sections: Sections) -> list[str]:
    """Lines of a page: when and where each section was measured, or why it was left out."""
    return ["", "## Sections", "", *(f"- {name}: {_about(one)}" for name, one in sections.items())]


def _about(one: Section) -> str:
    if one.skipped:
        lines = one.skipped.splitlines()
        return "left out: " + " ".join(line.strip() for line in dict.fromkeys((lines[0], lines[-1])))
    rounds = [counted(one.rounds, "round")] if one.rounds else []
    return "; ".join([f"{one.date}, {one.machine}", *rounds, *one.notes])


def _machine() -> str:
    """This one, in words."""
    found = report.hardware()
    return f"{found['cpu']}, {found['cores']} cores {' '.join(found['bf16'])}, {found['memory_gib']} GiB"
