"""What is wrong now, in sentences with what to do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from router.extensions.console.checks import (
    Verdicts,
    credentials,
    disks,
    experiments,
    outcomes,
    telemetry,
    wilson,
)
from router.extensions.console.traffic import LATELY, RANGES, Outcome, Traffic, TrafficCount
from router.routing.state import ClassifierState, RoutingState
from router.types import AdapterState
from tests.extensions.console.conftest import Roled
from tests.fakes import adapter
from tests.server.http_helpers import Http, StartWeb


def counted(reason: str = "QUEUE_FULL", **counts: int) -> TrafficCount:
    """So many requests of each outcome; those that were not answered for that reason."""
    found = TrafficCount()
    for name, count in counts.items():
        outcome = Outcome(name)
        found.outcomes[outcome] = count
        if outcome is not Outcome.ANSWERED:
            found.reasons[outcome] = Counter({reason: count})
    return found


def traffic_of(lately: TrafficCount, before: TrafficCount) -> Any:
    """As a day, `before` came earlier than the last 15 minutes."""
    day = TrafficCount()
    day.merge(lately)
    day.merge(before)
    return SimpleNamespace(total=lambda of: {LATELY.name: lately, "24h": day}[of.name])


def shown(lately: TrafficCount, before: TrafficCount | None = None) -> list[tuple[str, str]]:
    """Tone and text of each problem."""
    found = outcomes(traffic_of(lately, before or TrafficCount()), lately)
    return [(one.tone, one.text) for one in found]


def test_a_share_of_refusals_is_compared_with_the_usual_one() -> None:
    lately, usual = counted(answered=80, refused=20), counted(answered=9_900, refused=100)
    text = "20 of 100 requests (20.0 %) were refused in the last 15 minutes; usually 1.0 %: QUEUE_FULL 20."
    assert shown(lately, usual) == [("warn", text)]
    assert shown(lately, counted(answered=8_000, refused=2_000)) == []
    assert shown(counted(refused=63))[0][0] == "bad"
    assert shown(counted(refused=1))[0][0] == "warn"  # all that there was
    assert shown(counted(answered=20, refused=1)) == []


def test_every_failure_is_shown() -> None:
    text = "1 of 1,000 requests (0.1 %) failed in the last 15 minutes: INTERNAL 1."
    assert shown(counted("INTERNAL", answered=999, failed=1)) == [("warn", text)]
    assert shown(counted("INTERNAL", answered=90, failed=10))[0][0] == "bad"


def test_clients_that_hang_up_more_than_usual() -> None:
    assert shown(counted("CANCELLED", answered=95, cancelled=5)) == []
    text = "40 of 100 requests (40.0 %) were cancelled in the last 15 minutes."
    assert shown(counted("CANCELLED", answered=60, cancelled=40)) == [("warn", text)]


def test_the_interval_of_a_share_stays_within_0_and_1() -> None:
    assert 0.0 <= wilson(0, 3)[0] < 1e-9
    assert 1.0 - 1e-9 < wilson(3, 3)[1] <= 1.0
    low, high = wilson(50, 100, 1.96)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)


def test_a_disk_that_is_nearly_full() -> None:
    found = {Path("/state"): (20_000_000, 10**12), Path("/a"): (5 * 10**10, 10**11)}
    (one,) = disks(found)
    assert (one.tone, one.text) == ("bad", "The disk of state has 20 MB free of 1.0 TB.")


def test_credentials_and_telemetry() -> None:
    context: Any = SimpleNamespace(certificate_ends=lambda: time.time() + 3.5 * 86_400, unaudited=lambda: 2)
    texts = [one.text for one in credentials(context)]
    assert texts[0] == "The certificate of the server ends in 3 days."
    assert "did not take 2 lines" in texts[1]
    lately = TrafficCount()
    assert not list(telemetry(lately))
    traffic = Traffic()
    traffic.look(1, 2, 7)
    (one,) = telemetry(traffic.total(RANGES["15m"]))
    assert "did not take 7 spans" in one.text


def test_verdicts_of_experiments() -> None:
    running = [SimpleNamespace(name="tone"), SimpleNamespace(name="calm")]
    snapshot = SimpleNamespace(all=lambda: running)
    live: Any = SimpleNamespace(
        guardian=SimpleNamespace(observers=[]), assigner=SimpleNamespace(snapshot=snapshot)
    )
    verdicts = Verdicts(live)
    for name, decision in (
        ("tone", "promote"),
        ("calm", "undecided"),
        ("old", "promote"),
        ("bad", "stop for harm"),
    ):
        verdicts.noted(name, decision, decision.upper())
    found = [(one.tone, one.text, one.path) for one in experiments(verdicts)]
    assert found == [
        ("info", "Experiment tone may be decided: PROMOTE.", "/experiments/tone"),
        ("bad", "Experiment bad does harm: STOP FOR HARM.", "/experiments/bad"),
    ]


async def test_nothing_wrong_says_what_was_checked(opened: SimpleNamespace) -> None:
    page = (await opened.http.get("/console")).text
    assert "Nothing needs attention" in page
    assert "0 requests of the last 15 minutes" in page
    assert ">healthy<" in page


async def test_quarantined_versions_with_reason_and_page(roled: Roled) -> None:
    site = await roled(adapters=["legal"])
    for name in ("legal", "medical"):
        ill = adapter(name, "3.0.0", state=AdapterState.QUARANTINED, error=f"rank of {name} is 0")
        site.registry.put(ill)

    page = ""
    async with asyncio.timeout(10):
        while "rank of legal is 0" not in page:
            await asyncio.sleep(0.01)
            page = (await site.olga.get("/console/overview/live")).text
    assert "/console/adapters/legal/3.0.0" in page
    assert "medical" not in page  # not of this client


async def test_classifiers_that_do_not_vote(start_web: StartWeb, http: Http) -> None:
    off = ClassifierState("llm", "llm", 1, "off", "closed", 0, 0)
    broken = ClassifierState("linear", "linear", 50, "ready", "open", 7, 3, "cannot read /srv/models/file")
    asleep = ClassifierState("multilingual", "multilingual", 1, "asleep", "closed", 0, 0)
    state = RoutingState(classifiers=(off, asleep, broken), problems=("x: <i>",))
    page = (await http(await start_web(routing=lambda: state)).get("/console")).text
    for text in (
        "Classifier linear is switched off for now (breaker open): cannot read /srv/models/file.",
        "Plugin x: &lt;i&gt;.",
    ):
        assert text in page
    assert "llm" not in page
    assert "multilingual" not in page


async def test_flaws_are_told_to_who_may_know_of_every_adapter(roled: Roled) -> None:
    flaw = "classifier probe is not ready: cannot read /srv/models/file"
    seen = await roled(adapters=["*"])
    seen.router.flaws = (flaw,)
    assert "Classifier probe is not ready: cannot read /srv/models/file." in await overview(seen)
    page = await overview(await roled(adapters=["legal"]))
    assert ("Something is degraded." in page, "probe" in page) == (True, False)


async def overview(site: SimpleNamespace) -> str:
    return str((await site.olga.get("/console")).text)


async def test_flaws_of_health_with_where_to_mend_them(opened: SimpleNamespace) -> None:
    opened.router.flaws = ("classifier probe is not ready: it is learning",)
    opened.registry.flaws = ("the look at the folders failed",)
    page = (await opened.http.get("/console")).text
    assert "Classifier probe is not ready: it is learning." in page
    assert 'href="/console/routing"' in page
    assert "The look at the folders failed." in page
