"""`python -m benchmarks.newcomers`: adapters that are copied in beside the shipped ones.

The eight adapters of a deployment of recipes/routing, with 8 examples each, are newcomers to the calibration.
Their test requests, the deployment's requests for none, and half of dev.jsonl for the shipped adapters are
routed as a server with both folders does. The base is loaded. It takes about two minutes
on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.report import write
from benchmarks.routing_unseen import BUILDING, ROOT, ROUTING, Deciding, lines
from router.cli.settings import load_settings
from router.extensions.calibration.commands.local import resident_base
from router.routing.policy import CalibratedRule
from router.types import Vote

NOTES = [
    "right, wrong of routed, to a shipped one: of the deployment's 150 requests.",
    "shipped right, shipped wrong: of the requests of dev.jsonl, for the shipped adapters or for none.",
]


def line(
    name: str, rule: str, chosen: Sequence[str], labels: Sequence[str], dev: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """One line of the table, of the adapters chosen and meant, and of those of `dev`."""
    own = set(labels) - {""}
    known = [(label, adapter) for label, adapter in zip(labels, chosen, strict=True) if label]
    routed = sum(bool(adapter) for _, adapter in known)
    right = sum(label == adapter for label, adapter in known)
    strange = [adapter for label, adapter in zip(labels, chosen, strict=True) if not label]
    return {
        "deployment": name,
        "rule": rule,
        "right": right / len(known),
        "wrong of routed": (routed - right) / routed if routed else 0.0,
        "to a shipped one": sum(bool(adapter) and adapter not in own for _, adapter in known),
        "strangers routed": f"{sum(map(bool, strange))} of {len(strange)}",
        "shipped right": f"{sum(label == adapter for label, adapter in dev)} of {len(dev)}",
        "shipped wrong": sum(adapter not in ("", label) for label, adapter in dev),
    }


def measured(name: str) -> list[dict[str, Any]]:
    """With the comparison, and with `nearest` alone."""
    settings = load_settings({"adapters_dir": (ROOT / "adapters", ROUTING / name / "adapters")})
    rows = lines(ROUTING / name / "test.jsonl") + lines(ROUTING / name / "none.jsonl")
    dev = [json.loads(row) for row in (ROUTING / "dev.jsonl").read_text("utf-8").splitlines()][::2]
    with resident_base(settings) as base:
        deciding = Deciding(settings, base)
        votes = deciding.votes([*(text for text, _ in rows), *(row["text"] for row in dev)])
    rule = deciding.rule
    assert isinstance(rule, CalibratedRule)
    nearest = replace(rule, comparing=frozenset(), scaling=rule.scaling - rule.comparing)

    def decided(by: CalibratedRule, ballots: Sequence[Sequence[Vote]]) -> list[str]:
        return [by.conclude(ballot, deciding.names).adapter for ballot in ballots]

    found = []
    for title, by in (("compared", rule), ("nearest alone", nearest)):
        chosen = decided(by, votes)
        shipped = zip((row["label"] for row in dev), chosen[len(rows) :], strict=True)
        found.append(line(name, title, chosen[: len(rows)], [label for _, label in rows], list(shipped)))
    return found


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = [row for name in BUILDING for row in measured(name)]
    print(write("newcomers", "Eight adapters beside the shipped ones, calibrated without them.", rows, NOTES))


if __name__ == "__main__":
    main()
