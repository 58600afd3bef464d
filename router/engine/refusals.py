"""What an engine refuses at once of readings, each with what to do."""

from __future__ import annotations

from router.engine.base import Reading
from router.errors import FieldViolation, InvalidRequest, Overloaded, PromptTooLong

MAX_READINGS = 256  # in progress or waiting


def check_reading(reading: Reading, context_length: int, held: int) -> None:
    """Raises what `Engine.read` says; `held` readings are not done yet."""
    if not reading.tokens:
        raise InvalidRequest([FieldViolation("tokens", "are none: there is nothing to read")])
    if reading.depth is None and not reading.context:
        raise InvalidRequest(
            [FieldViolation("context", "has no token, and likelihoods need one before them")]
        )
    if reading.depth is not None and not 0 <= reading.depth <= 1:
        raise InvalidRequest([FieldViolation("depth", f"must lie in 0 to 1, got {reading.depth}")])
    if reading.ends < 0:
        raise InvalidRequest([FieldViolation("ends", f"must be 0 or more, got {reading.ends}")])
    total = len(reading.context) + len(reading.tokens)
    if total > context_length:
        raise PromptTooLong(context_length, total)
    if held >= MAX_READINGS:
        raise Overloaded("too many readings wait")
