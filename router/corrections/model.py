"""A correction: who answered a request, who should have, and perhaps what was asked; a line of JSON each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

MAX_TEXT = 4_000  # characters: a longer text can be no example of an adapter


@dataclass(frozen=True, slots=True)
class Correction:
    """`label` is who should have answered, `chosen` who did; "" is the base, and None for `chosen`: nobody
    knows any more, or several did at once. `reason` and `confidence` are the decision's. Without `text` it
    says only that it was so.
    """

    time: float  # unix seconds
    response_id: str
    label: str
    chosen: str | None = None
    reason: str = ""
    confidence: float = 0.0
    text: str = ""
    tenant: str = ""

    @property
    def wrong(self) -> bool:
        """Whether somebody else answered."""
        return self.chosen is not None and self.chosen != self.label


def to_line(correction: Correction) -> bytes:
    """One line, its end included. The keys `text` and `label` are those of requests for `route evaluate`."""
    fields: dict[str, Any] = {
        "time": datetime.fromtimestamp(correction.time, UTC).isoformat(timespec="milliseconds"),
        "tenant": correction.tenant,
        "response_id": correction.response_id,
        "label": correction.label,
        "chosen": correction.chosen,
        "reason": correction.reason,
        "confidence": round(correction.confidence, 6),
    }
    if correction.text:
        fields["text"] = correction.text
    return json.dumps(fields).encode() + b"\n"  # ASCII: no reader takes a letter of it for the end of a line


def from_line(line: bytes) -> Correction | None:
    """None for what is no correction, such as a line that was cut off."""
    try:
        fields = json.loads(line)
        found = _from_fields(fields) if isinstance(fields, dict) else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return found


def _from_fields(fields: dict[str, Any]) -> Correction:
    """Raises ValueError, KeyError or TypeError for fields that are not there or of another kind."""
    chosen = fields.get("chosen")
    texts = {key: fields.get(key, "") for key in ("response_id", "reason", "text", "tenant")}
    if not isinstance(chosen, str | None) or not all(
        isinstance(value, str) for value in (fields["label"], *texts.values())
    ):
        raise TypeError("a text is none")
    when = datetime.fromisoformat(fields["time"]) if "time" in fields else datetime.fromtimestamp(0, UTC)
    confidence = float(fields.get("confidence", 0.0))
    if not math.isfinite(confidence):
        raise ValueError("confidence is not finite")
    return Correction(
        time=(when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp(),
        label=fields["label"],
        chosen=chosen,
        confidence=confidence,
        **texts,
    )


def latest(corrections: Iterable[Correction]) -> list[Correction]:
    """Of each answer the last word, in the order in which it was said."""
    found: dict[tuple[object, ...], Correction] = {}
    for number, one in enumerate(corrections):
        key = (one.tenant, one.response_id) if one.response_id else (number,)
        found.pop(key, None)
        found[key] = one
    return list(found.values())
