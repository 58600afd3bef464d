"""`python -m benchmarks.corrections`: what 30 corrections of one kind of request change.

The shipped adapters and their calibration are copied to a folder. 30 casual questions about taxes come as
corrections for `financial`, and `lora-router route learn --write` runs with nothing but what the calibration
keeps. Before and after, 20 other tax questions and the 431 requests of recipes/routing/dev.jsonl are routed
as a server with that folder would. The base is loaded. It takes about ten minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.report import write
from router.extensions.calibration.certify import upper_bound
from router.extensions.calibration.commands.judge import local_rule
from router.extensions.calibration.commands.learn import learn
from router.extensions.calibration.commands.local import open_local
from router.extensions.calibration.rows import DataRow

ROOT = Path(__file__).parents[1]
ROUTING, PLUGINS = ROOT / "recipes" / "routing", ROOT / "plugins"
PARTS = ("fresh tax questions", "dev.jsonl")
NOTES = [
    "right: the adapter that the request is for, or the base where it is for none; wrong: another adapter.",
    "The tax questions were written by a language model, all 50 by one author.",
]


def requests() -> dict[str, list[tuple[str, str]]]:
    """Text and adapter by part."""
    tax = [json.loads(line) for line in (ROUTING / "tax.jsonl").read_text().splitlines()]
    dev = [json.loads(line) for line in (ROUTING / "dev.jsonl").read_text().splitlines()]
    fresh = [(row["text"], row["adapter"]) for row in tax if row["use"] == "fresh"]
    return dict(zip(PARTS, (fresh, [(row["text"], row["label"]) for row in dev]), strict=True))


def decided(adapters: Path, when: str) -> list[dict[str, Any]]:
    """One line of the table for each part."""
    found = []
    with open_local([adapters], [PLUGINS], calibration="auto") as local:
        rule = local_rule(local, "auto")
        for part, rows in requests().items():
            ballots = local.votes([DataRow(*row) for row in rows], part)
            chosen = [rule.now.conclude(ballot.votes, local.kinds.keys()).adapter for ballot in ballots]
            right = sum(adapter == label for adapter, (_, label) in zip(chosen, rows, strict=True))
            wrong = sum(adapter not in ("", label) for adapter, (_, label) in zip(chosen, rows, strict=True))
            low, high = (
                1 - upper_bound(len(rows) - right, len(rows), 0.025),
                upper_bound(right, len(rows), 0.025),
            )
            interval = f"{low:.3f} to {high:.3f}"
            found.append(
                {
                    "": when,
                    "requests": part,
                    "count": len(rows),
                    "right": right,
                    "wrong": wrong,
                    "95 % interval of right": interval,
                    "calibration": rule.status,
                }
            )
    return found


def main() -> None:
    """Print the table and write it to benchmarks/results."""
    with TemporaryDirectory() as folder:
        adapters = Path(folder, "adapters")
        shutil.copytree(ROOT / "adapters", adapters, ignore=shutil.ignore_patterns("*.safetensors"))
        rows = [json.loads(line) for line in (ROUTING / "tax.jsonl").read_text().splitlines()]
        said = [
            {"response_id": str(n), "text": row["text"], "label": row["adapter"], "chosen": ""}
            for n, row in enumerate(rows)
            if row["use"] == "correction"
        ]
        corrections = Path(folder, "corrections.jsonl")
        corrections.write_text("".join(json.dumps(one) + "\n" for one in said))
        table = decided(adapters, "before")
        started = time.perf_counter()
        learn([corrections], write=True, adapters_dir=[adapters], plugins_dir=[PLUGINS])
        took = f"`route learn --write` took {time.perf_counter() - started:.0f} s."
        table += decided(adapters, "after")
    print(write("corrections", "30 corrections of one kind.", table, [*NOTES, took]))


if __name__ == "__main__":
    main()
