"""What clients may be trusted with. Which role a method or route needs says its row of the policy table
(`router/server/policy.py`)."""

from __future__ import annotations

from enum import Enum


class Role(Enum):
    """What a client may be trusted with; none contains another."""

    OPEN = "open"  # of a method, never of a client: anybody may call it
    INFER = "infer"
    OBSERVE = "observe"
    ADMIN = "admin"


GIVEN = frozenset({Role.INFER, Role.OBSERVE, Role.ADMIN})  # what clients can have
