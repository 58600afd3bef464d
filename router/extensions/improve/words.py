"""A run in sentences and tables, for the terminal and the page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from router.extensions.improve.rule import Gap
from router.extensions.improve.state import Result, Run

HEADLINES = {
    Result.NONE: "the run is not finished",
    Result.TOO_FEW: "too few rows",
    Result.NO_BETTER: "no better",
    Result.BETTER: "better, not before users yet",
    Result.CANARY: "better, a canary runs",
    Result.PROMOTED: "better, and it serves",
    Result.LOST: "users did not find it better",
}
COLUMNS = ("RUN", "FROM", "TO", "ROWS", "ON FEEDBACK", "ON OLD ROWS", "RESULT")


def taken(run: Run, since: float) -> str:
    """What was read, taken and left out."""
    when = f" since {clock(since)}" if since else ""
    lines = [
        f"feedback on {run.read} answers{when}: {run.train + run.held_out} rows taken, "
        f"{run.train} to train on and {run.held_out} held out"
    ]
    lines += [f"  {count} prompts with the {kind} masked" for kind, count in sorted(run.masked.items())]
    lines += [f"  {count} left out: {why}" for why, count in sorted(run.left.items())]
    return "\n".join(lines)


def headline(run: Run) -> str:
    """The result first."""
    what = HEADLINES[run.result]
    return f"{run.name}@{run.version}: {what}" + (f": {run.why}" if run.why else "")


def advice(run: Run) -> str:
    """What to do next."""
    match run.result:
        case Result.TOO_FEW:
            return "Wait for more feedback, or lower --least."
        case Result.NO_BETTER:
            return "Nothing changes for users. The version is kept in the work folder, and is never offered."
        case Result.BETTER:
            return f"Put it before users: lora-router adapters improve {run.name} --canary 0.1"
        case Result.CANARY:
            return (
                f"Follow it: lora-router adapters improve {run.name} --status, or lora-router experiments "
                f"report {run.experiment}. The same command as before acts on its verdict."
            )
        case Result.PROMOTED:
            return f"The way back: lora-router experiments rollback {run.experiment}"
        case Result.LOST:
            return "Nothing changes for users. The version is out of the adapters folder again."
    return f"Go on with: lora-router adapters improve {run.name}"


def table_row(run: Run) -> tuple[str, ...]:
    """One run among others; `COLUMNS` has the heads."""
    rows = f"{run.train} + {run.held_out}" if run.read else ""
    return (
        str(run.number),
        run.base,
        run.version,
        rows,
        points(run.new),
        points(run.old),
        HEADLINES[run.result],
    )


def points(found: Mapping[str, Any]) -> str:
    """The difference of a comparison; empty before it was made."""
    return Gap.of(found["difference"]).points if found else ""


def provenance(run: Run) -> dict[str, Any]:
    """What a version's report card says of where it comes from."""
    return {
        "base_version": run.base,
        "run": run.number,
        "rows_sha256": run.rows_sha256,
        "feedback": {"read": run.read, "train": run.train, "held_out": run.held_out, "left": dict(run.left)},
        "own_rows": run.own,
        "steps": run.steps,
        "on_feedback": dict(run.new),
        "on_validation": dict(run.old),
    }


def clock(moment: float) -> str:
    """Unix seconds as a local time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
