"""Decisions and usage in one line each."""

from __future__ import annotations

from datetime import UTC, datetime

from router.cli import units
from router.types import Decision, Override, Reason, Usage

FITTED = "fitted"  # Decision.calibration, where the calibration is for the present set


def decision_line(decision: Decision) -> str:
    """`medical@1.2.0  confidence 0.93  by linear  (classified)`."""
    if decision.adapter is not None:
        parts = [str(decision.adapter)]
        if decision.classifier:
            parts += _sure(decision)
        return "  ".join([*parts, f"({decision.reason.value})"])
    if decision.reason is Reason.ABSTAINED:
        best = f"best {decision.confidence:.2f}, " if decision.confidence else ""
        return f"base  (abstained: {best}needed {decision.threshold:.2f})"
    if decision.reason is Reason.UNFAMILIAR:
        return f"base  (unfamiliar: best {decision.confidence:.2f}, but unlike the adapters' examples)"
    return f"base  ({decision.reason.value})"


def _sure(decision: Decision) -> list[str]:
    """A calibration weighs all votes up to the one that settled it: the number is not that one's own."""
    if decision.calibration == FITTED:
        return [f"confidence {decision.confidence:.2f} of all votes up to {decision.classifier}, calibrated"]
    return [f"confidence {decision.confidence:.2f}", f"by {decision.classifier}"]


def usage_line(usage: Usage, finish: str) -> str:
    """`stop  87 + 45 tokens (64 cached)  first after 120 ms  38.1 tokens/s`."""
    cached = f" ({usage.cached_tokens} cached)" if usage.cached_tokens else ""
    parts = [finish, f"{usage.prompt_tokens} + {usage.completion_tokens} tokens{cached}"]
    if usage.time_to_first_token:
        parts.append(f"first after {units.duration(usage.time_to_first_token)}")
    decoding = usage.total_time - usage.time_to_first_token
    if usage.completion_tokens > 1 and decoding > 0:
        parts.append(f"{(usage.completion_tokens - 1) / decoding:.1f} tokens/s")
    return "  ".join(parts)


def override_line(override: Override) -> str:
    """`by 127.0.0.1 at 2026-11-25 14:02 UTC, "measured by hand"; the gate had said: no report.json`."""
    when = datetime.fromtimestamp(override.time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    reason = f', "{override.reason}"' if override.reason else ", no reason given"
    return f"by {override.by} at {when}{reason}; the gate had said: {override.finding}"
