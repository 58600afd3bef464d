"""Addresses that servers of tests may listen at."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

PORTS = range(10_000, 32_000)  # below those of outgoing connections, so that none of these takes it before


def free_address() -> str:
    """A port of this machine that nobody has now."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"
    raise OSError("100 ports are in use")
