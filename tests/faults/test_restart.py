"""After kill -9, a server on the real base serves with every adapter that was ready, within ten seconds."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from router.client import Client
from router.types import AdapterState
from tests.faults.served import ROOT
from tests.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.alone, pytest.mark.timeout(400)]
MOST_SECONDS = 10.0


def all_ready(address: str) -> set[str]:
    """Wait until every adapter is in memory, and name them."""
    with Client(address) as client:
        for _ in range(1200):
            found = {a.ref.resource: a.state for a in client.adapters.list()}
            if found and set(found.values()) == {AdapterState.READY}:
                return set(found)
            time.sleep(0.1)
    pytest.fail(f"not ready: {found}")


def test_it_serves_again_in_time(tmp_path: Path) -> None:
    state, flags = {"XDG_STATE_HOME": str(tmp_path / "state")}, ("--adapters-dir", str(ROOT / "adapters"))
    with serving(tmp_path, *flags, **state) as (child, address):
        before = all_ready(address)
        child.send_signal(signal.SIGKILL)
        child.wait()
    begun = time.monotonic()
    with serving(tmp_path, *flags, **state) as (_, address):
        assert all_ready(address) == before
        took = time.monotonic() - begun
        with Client(address) as client:
            assert client.generate("What is gout?", max_tokens=4).text
    print(f"{took:.2f} s from the start to SERVING with {len(before)} adapters ready")
    assert len(before) == len(list((ROOT / "adapters").glob("*/adapter_config.json")))
    assert took <= MOST_SECONDS
