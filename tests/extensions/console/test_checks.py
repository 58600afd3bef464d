"""What is wrong now, in sentences with what to do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from router.extensions.console.checks import (
    MOST_SHOWN,
    Problem,
    credentials,
    experiments,
    grouped,
    nearly_full,
    outcomes,
)
from router.extensions.console.request_log import Outcome
from router.extensions.console.verdicts import Verdicts
from router.routing.state import ClassifierState, RoutingState
from router.server.metrics import ServerMetrics
from router.types import AdapterState
from tests.extensions.console.conftest import Roled
from tests.fakes import adapter
from tests.server.http_helpers import Http, StartWeb


def shown(reason: str = "QUEUE_FULL", **counts: int) -> list[tuple[str, str]]:
    """Tone and line of each problem of so many requests of each outcome, all with that code."""
    lately = Counter({(Outcome(name), reason): count for name, count in counts.items()})
    return [(one.tone, one.line) for one in grouped(outcomes(lately))]


def test_a_large_share_of_refusals() -> None:
    text = "20 of 100 requests (20.0 %) were refused in the last 15 minutes: QUEUE_FULL."
    assert shown(answered=80, refused=20) == [("warn", text)]
    assert shown(refused=63)[0][0] == "bad"
    assert shown(refused=1)[0][0] == "warn"  # all that there was
    assert shown(answered=20, refused=1) == []


def test_every_failure_is_shown() -> None:
    text = "1 of 1,000 requests (0.1 %) failed in the last 15 minutes: INTERNAL."
    assert shown("INTERNAL", answered=999, failed=1) == [("warn", text)]
    assert shown("INTERNAL", answered=90, failed=10)[0][0] == "bad"


def test_clients_that_hang_up() -> None:
    assert shown("CANCELLED", answered=60, cancelled=40) == []
    text = "60 of 100 requests (60.0 %) were cancelled in the last 15 minutes: CANCELLED."
    assert shown("CANCELLED", answered=40, cancelled=60) == [("bad", text)]


def test_several_codes_are_one_line_and_each_leads_to_its_requests() -> None:
    lately = Counter({(Outcome.FAILED, "INTERNAL"): 3, (Outcome.FAILED, "STORE_DOWN"): 1})
    (group,) = grouped(outcomes(lately))
    end = "failed in the last 15 minutes: INTERNAL 3, STORE_DOWN 1."
    assert group.line == f"4 of 4 requests (100.0 %) {end}"
    assert [(one.text, one.path) for one in group.problems] == [
        ("INTERNAL: 3 requests.", "/requests?outcome=failed&code=INTERNAL"),
        ("STORE_DOWN: 1 request.", "/requests?outcome=failed&code=STORE_DOWN"),
    ]


def test_problems_of_one_cause_are_one_line_and_the_worst_comes_first() -> None:
    many = [Problem("warn", "{n} disks are full.", f"Disk {number}.") for number in range(30)]
    first, second = grouped([*many, *many, Problem("bad", "{n} fires.", "It burns.")])
    assert (first.line, first.count) == ("It burns.", 1)
    assert (second.line, second.count, len(second.problems)) == ("30 disks are full.", 30, MOST_SHOWN)


def test_a_disk_that_is_nearly_full() -> None:
    found = {Path("/state"): (20_000_000, 10**12), Path("/a"): (5 * 10**10, 10**11)}
    (one,) = nearly_full(found)
    assert (one.tone, one.text) == ("bad", "The disk of state has 20 MB free of 1.0 TB.")


def test_credentials_and_records() -> None:
    ends = time.time() + 3.5 * 86_400
    metrics = ServerMetrics()
    metrics.telemetry_lost.labels("spans").inc(7)
    tls, audit = SimpleNamespace(expires=ends), SimpleNamespace(failed=2)
    server: Any = SimpleNamespace(tls=tls, audit=audit, metrics=metrics)
    texts = [one.text for one in credentials(server)]
    assert texts[0] == "The certificate of the server ends in 3 days."
    assert "did not take 2 lines" in texts[1]
    assert "did not take 7 spans" in texts[2]


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
