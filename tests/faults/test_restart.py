"""After kill -9 a server on the real base serves within ten seconds, with every adapter that was ready; every
classifier answers within five seconds more."""

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
MOST_SECONDS_TO_ANSWER = 5.0


def all_ready(address: str) -> set[str]:
    """Wait until the default version of every adapter is in memory, and name them."""
    with Client(address) as client:
        for _ in range(1200):
            listed = list(client.adapters.list())
            found = {a.ref.resource: a.state for a in listed if a.default}
            whole = len(found) == len({a.ref.name for a in listed}) > 0
            if whole and set(found.values()) == {AdapterState.READY}:
                return set(found)
            time.sleep(0.1)
    pytest.fail(f"not ready: {found}")


def all_answer(address: str, seconds: float) -> float:
    """Wait until every classifier votes; the seconds that it took."""
    begun, lost = time.monotonic(), []
    with Client(address) as client:
        while time.monotonic() < begun + seconds:
            votes = client.route("What is gout?").votes
            lost = [f"{vote.classifier}: {vote.error}" for vote in votes if vote.error]
            if votes and not lost:
                return time.monotonic() - begun
            time.sleep(0.1)
    pytest.fail(f"no votes after {seconds:g} s: {lost}")


def test_it_serves_again_in_time(tmp_path: Path) -> None:
    state, flags = {"XDG_STATE_HOME": str(tmp_path / "state")}, ("--adapters-dir", str(ROOT / "adapters"))
    with serving(tmp_path, *flags, **state) as (child, address):
        before = all_ready(address)
        all_answer(address, 240.0)
        child.send_signal(signal.SIGKILL)
        child.wait()
    begun = time.monotonic()
    with serving(tmp_path, *flags, **state) as (_, address):
        answered = all_answer(address, MOST_SECONDS_TO_ANSWER)
        assert all_ready(address) == before
        took = time.monotonic() - begun
        with Client(address) as client:
            assert client.generate("What is gout?", max_tokens=4).text
    ready = f"{len(before)} adapters ready {took:.2f} s after the start"
    print(f"{ready}, all votes {answered:.2f} s after SERVING")
    assert took <= MOST_SECONDS
