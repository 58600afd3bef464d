"""`python -m benchmarks.routing_unseen`: how well requests are routed for adapters that nobody tuned.

Each deployment of recipes/routing has eight adapters with 8 examples each (25 with the further ones), 150
requests for them and 60 for none. Settings are the defaults; there is no calibration. The deployment of the
software vendor is unseen: do not tune by it. It is asked with --unseen only. The base is loaded for the
classifier that reads it. It takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.report import write
from router.classifiers.registration import Registration
from router.cli.plugins import load_plugins
from router.cli.route.local import ask_batch, fit_panel, read_profiles, resident_base
from router.cli.settings import load_settings
from router.routing import BaseModel
from router.routing.knowledge import Labels
from router.routing.panel import Lessons
from router.routing.policy import Policy, RuleInForce
from router.types import AdapterProfile, Vote

ROOT = Path(__file__).parents[1]
ROUTING = ROOT / "recipes" / "routing"
BUILDING, UNSEEN = ("company", "hospital"), ("software_vendor",)
BATCH = 32
NOTES = [
    "right: share of the requests for the eight adapters that reach the right one. The others go to the base "
    "or to another adapter (wrong of routed).",
    "The requests were written by a language model; recipes/routing/README.md says how.",
]


def lines(path: Path) -> list[tuple[str, str]]:
    """Text and adapter ('' for none) of each request of a file of JSON lines."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(row["text"], row.get("adapter", "")) for row in rows]


def profiles_of(folder: Path, more: bool) -> tuple[AdapterProfile, ...]:
    """The deployment's adapters, with all their examples where `more`."""
    profiles = read_profiles([folder / "adapters"])
    if not more:
        return profiles
    further = lines(folder / "more_examples.jsonl")
    return tuple(
        replace(p, examples=(*p.examples, *(text for text, name in further if name == p.name)))
        for p in profiles
    )


def votes_of(
    registrations: Sequence[Registration], texts: Sequence[str], labels: Labels
) -> Iterator[tuple[Vote, ...]]:
    """Of every classifier on each text, in the order in which they are asked."""
    columns = [
        [v for i in range(0, len(texts), BATCH) for v in ask_batch(one, texts[i : i + BATCH], labels)]
        for one in registrations
    ]
    return zip(*columns, strict=True)


def measured(name: str, more: bool, base: BaseModel) -> dict[str, Any]:
    """One line of the table."""
    folder = ROUTING / name
    profiles = profiles_of(folder, more)
    panel = fit_panel(load_plugins([ROOT / "plugins"]).registrations(), Lessons(profiles, profiles), base)
    in_force = RuleInForce(Policy())
    in_force.classifiers_are(panel.registrations)
    in_force.adapters_are(profiles)
    rows = lines(folder / "test.jsonl") + lines(folder / "none.jsonl")
    votes = votes_of(panel.registrations, [text for text, _ in rows], Labels(profiles))
    names = {profile.name for profile in profiles}
    chosen = [in_force.now.conclude(ballot, names).adapter for ballot in votes]
    known = [(label, adapter) for (_, label), adapter in zip(rows, chosen, strict=True) if label]
    strange = [adapter for (_, label), adapter in zip(rows, chosen, strict=True) if not label]
    right = sum(label == adapter for label, adapter in known)
    routed = sum(bool(adapter) for _, adapter in known)
    return {
        "deployment": name,
        "half": "unseen" if name in UNSEEN else "building",
        "examples each": len(profiles[0].examples),
        "requests": len(known),
        "right": right / len(known),
        "wrong of routed": (routed - right) / routed if routed else 0.0,
        "strangers routed": f"{sum(map(bool, strange))} of {len(strange)}",
    }


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--unseen", action="store_true", help="ask the unseen deployment, too")
    asked = parser.parse_args()
    names = BUILDING + (UNSEEN if asked.unseen else ())
    with resident_base(load_settings({})) as base:
        rows = [measured(name, more, base) for name in names for more in (False, True)]
    print(write("routing-unseen", "Default settings, no calibration.", rows, NOTES))


if __name__ == "__main__":
    main()
