"""A run in sentences."""

from __future__ import annotations

from router.extensions.improve.state import Result, Run


def taken(run: Run) -> str:
    """What was read, taken and left out."""
    lines = [
        f"feedback on {run.read} answers: {run.train + run.held_out} rows taken, {run.train} to train on and "
        f"{run.held_out} of users who were not seen before held out"
    ]
    return "\n".join(lines + [f"  {count} left out: {why}" for why, count in sorted(run.left.items())])


def headline(run: Run) -> str:
    """The result first."""
    return f"{run.name}@{run.version}: {run.result}" + (f": {run.why}" if run.why else "")


def advice(run: Run) -> str:
    """What to do next."""
    match run.result:
        case Result.TOO_FEW:
            return "Wait for more feedback."
        case Result.NO_BETTER:
            return "Nothing changes for users. The version is kept in the work folder, and is never offered."
        case Result.BETTER:
            return f"Put it before users: lora-router adapters improve {run.name}"
        case Result.CANARY:
            return (
                f"Follow it: lora-router experiments report {run.experiment}. Act on its verdict: "
                f"lora-router adapters improve {run.name} --promote"
            )
        case Result.PROMOTED:
            return f"The way back: lora-router experiments rollback {run.experiment}"
        case Result.LOST:
            return "Nothing changes for users. The version is out of the adapters folder again."
    return f"Go on with: lora-router adapters improve {run.name}"
