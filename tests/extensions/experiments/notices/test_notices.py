"""What is told of a report, once, and how it gets to a webhook that may be slow, broken or gone."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from dataclasses import replace

import pytest

from router import __version__
from router.errors import ConfigError
from router.extensions.experiments import notices
from router.extensions.experiments.model import AuditEntry, Lifecycle
from router.extensions.experiments.notices import (
    Event,
    Notice,
    Notifier,
    check_webhook,
    claimed_notices,
    due_notices,
    notice_entry,
)
from router.extensions.experiments.report.model import (
    ArmNumbers,
    ArmReport,
    MetricReport,
    PipelineCheck,
    PlannedProgress,
    Report,
    Ruling,
)
from router.extensions.experiments.runtime import act_on
from router.extensions.experiments.store.store import ExperimentStore
from router.extensions.experiments.verdict import VerdictDecision
from tests.extensions.experiments.made import experiment
from tests.extensions.experiments.memory_store import MemoryStore
from tests.extensions.experiments.notices.receiving import FLOOD, HANG, HOOK, OK, QUERY
from tests.extensions.experiments.test_guardian import BROKEN, HARM, OPEN
from tests.extensions.experiments.test_recorder import until

BETTER = Ruling(VerdictDecision.PROMOTE, "primary-better", "success: 0.6 against 0.5")
SUCCESS = MetricReport("success", (50, 50), (0.5, 0.6), 0.1, float("-inf"), 0.2, 0.01, "asymptotic")
NOTICE = Notice("trial", 1, Event.PROMOTABLE, "new", "text", 50.0, {"rule": "primary-better"}, 10.0)
SECRET = "s3cret-of-both"
GAIN = (
    "success: +10.0 points (20.0 or less) ? not clear yet: 60.0 % of users with new, 50.0 % with control."
    " More is better."
)
GIVE_UP = "GIVE UP: no difference between new and control is shown."


def report(verdict: Ruling = OPEN, *checks: PipelineCheck, audit=(), units: int = 10, of=None) -> Report:
    of = of or experiment()
    arm = ArmReport("new", verdict, SUCCESS, guardrails=(replace(SUCCESS, metric="error", state="beyond"),))
    counted = tuple(ArmNumbers(name, units, units, 0, units, units, 0.5) for name in ("control", "new"))
    return Report(of, len(of.phases), verdict, "new", (arm,), checks, counted, tuple(audit), (), (), 50.0)


def told(found: Report) -> list[tuple[str, str, str]]:
    return [(notice.event, notice.arm, notice.text) for notice in due_notices(found)]


def test_nothing_is_due():
    assert due_notices(report()) == ()
    assert due_notices(report(of=experiment(state=Lifecycle.STOPPED), units=10_000)) == ()
    assert due_notices(replace(report(BETTER, of=experiment(phase=2)), phase=1)) == ()


def test_a_promotion_is_due_with_its_numbers():
    assert told(report(BETTER)) == [
        ("may-be-promoted", "new", "PROMOTE new: it is better than control. " + GAIN)
    ]
    payload = json.loads(json.dumps(due_notices(report(BETTER))[0].to_json(), allow_nan=False))
    assert (payload["experiment"], payload["phase"], payload["time"]) == ("trial", 1, 50.0)
    primary, arms = payload["numbers"]["primary"], payload["numbers"]["arms"]
    assert (primary["values"], primary["low"], arms["control"]["units"]) == ([0.5, 0.6], None, 10)


def test_checks_that_failed_are_due():
    ratio = PipelineCheck("sample-ratio", True, "10, 90")
    crossed, sound = PipelineCheck("crossed-units", True, "9 %"), PipelineCheck("maturity", False, "all")
    assert told(report(BROKEN, ratio, crossed, sound)) == [
        (
            "sample-ratio-broken",
            "",
            "The arms do not have their planned shares of users, so one arm loses some of them or counts them"
            " twice. control has 10 users, 10 are expected; new has 10 users, 10 are expected.",
        ),
        ("invalid", "", "Too many users saw more than one arm. 9 %."),
    ]


def test_a_planned_size_without_a_decision_is_due():
    took_part = "5,000 of 5,000 planned users (100 %) took part and had their time"
    ended = replace(report(units=2500), planned=PlannedProgress(5000, 5000, True, None, None, False, ""))
    said = f"{took_part}, and it is still undecided. {GIVE_UP} {GAIN}"
    assert told(ended) == [("planned-size-reached", "", said)]
    young = tuple(replace(one, matured=0) for one in ended.numbers)
    assert told(replace(ended, numbers=young)) == []
    assert [n.event for n in due_notices(report(BETTER, units=2500))] == ["may-be-promoted"]


def test_harm_is_due_from_the_act_also_after_the_stop():
    act = act_on(report(HARM), 60.0)
    expected = [("stopped-for-harm", "new", "new was stopped. errors: 0.2 against 0.01")]
    assert told(report(HARM, audit=[act.entry])) == expected
    assert told(report(of=act.experiment, audit=[act.entry])) == expected
    assert due_notices(report(audit=[AuditEntry("trial", 1.0, "ann", "stop", "", act.entry.detail)])) == ()


def test_each_is_told_once_in_a_phase_and_again_in_another():
    (first,) = due_notices(report(BETTER))
    said = [notice_entry(first)]
    assert due_notices(report(BETTER, audit=said)) == ()
    assert len(due_notices(replace(report(BETTER, audit=said), arm="other"))) == 1
    assert due_notices(report(BETTER, audit=said, of=experiment(phase=2)))[0].id != first.id
    later = replace(experiment(), phases=(replace(experiment().phases[0], started=7777.0),))
    assert len(due_notices(report(BETTER, audit=said, of=later))) == 1  # another experiment of that name


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_of_two_servers_one_tells_and_none_after_a_restart(kind, tmp_path):
    store = MemoryStore() if kind == "memory" else ExperimentStore(f"sqlite:///{tmp_path}/store.db")
    store.create(experiment())
    seen = report(BETTER)
    assert len(claimed_notices(store, seen)) == 1
    assert claimed_notices(store, replace(seen, time=51.0)) == ()  # it looked before the other one wrote
    assert claimed_notices(store, replace(seen, audit=store.trail("trial"))) == ()
    assert [told.act for told in store.trail("trial")] == ["notice", "notice"]
    store.close()


def test_a_store_that_goes_down_loses_nothing(monkeypatch):
    store = MemoryStore()
    store.down = True
    assert claimed_notices(store, report(BETTER)) == ()  # nothing is written: due at the next look
    store.down = False
    monkeypatch.setattr(store, "audit", lambda _: setattr(store, "down", True))  # right after it
    assert len(claimed_notices(store, report(BETTER))) == 1


@pytest.fixture
async def made(receiver):
    all_made = []  # closed in the end

    def make(url: str = receiver.url, secret: str = SECRET, waits=(0.01, 0.01)) -> Notifier:
        all_made.append(Notifier(url, secret, waits))
        all_made[-1].start()
        return all_made[-1]

    yield make
    for notifier in all_made:
        await notifier.close()


async def sent(notifier: Notifier, **expected: int) -> None:
    notifier.send(NOTICE)
    await ended(notifier, **expected)


async def ended(notifier: Notifier, **expected: int) -> None:
    """Wait for these counts; all others are 0."""
    counts = dict.fromkeys(("delivered", "failed", "dropped", "retried"), 0) | expected
    await until(lambda: sum(notifier.deliveries.values()) >= sum(expected.values()))
    assert dict(notifier.deliveries) == counts


async def test_without_a_url_it_is_counted_and_logged(made, caplog):
    notifier = made("", "")
    notifier.send(NOTICE)
    await ended(notifier)
    assert notifier.sent == {("trial", "may-be-promoted"): 1}
    said = {"experiment": "trial", "phase": 1, "notice": "may-be-promoted", "arm": "new", "text": "text"}
    assert [record.fields for record in caplog.records] == [{**said, "delivery": NOTICE.id}]


async def test_a_delivery_is_signed_and_named_and_shows_no_secret(receiver, made, caplog):
    caplog.set_level(logging.DEBUG)
    await sent(made(), delivered=1)
    ((path, headers, body),) = receiver.got
    assert (path, json.loads(body)) == (HOOK, NOTICE.to_json())
    assert notices.verify(SECRET, headers["Lora-Router-Signature"], body, time.time())
    assert (headers["Lora-Router-Event"], headers["Lora-Router-Delivery"]) == ("may-be-promoted", NOTICE.id)
    assert headers["User-Agent"] == f"lora-router/{__version__}"
    shown = "".join(f"{r.getMessage()} {getattr(r, 'fields', '')}" for r in caplog.records)
    assert "experiment notice delivered" in shown
    assert not any(hidden in shown for hidden in (QUERY, SECRET, "/hook"))
    await sent(made(secret=""), delivered=1)
    assert "Lora-Router-Signature" not in receiver.got[1][1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "counts", "hint"),
    [
        *(((status, OK), {"delivered": 1, "retried": 1}, "") for status in (500, 503, 429, 425, 408, HANG)),
        ((500,), {"failed": 1, "retried": 2}, "answered 500"),
        ((302,), {"failed": 1, "retried": 2}, "where it redirects"),  # and it is not followed
        ((404,), {"failed": 1}, "check the path"),
        ((410,), {"failed": 1}, "it is gone"),
        ((400,), {"failed": 1}, "check what its log says"),
        ((FLOOD,), {"delivered": 1}, ""),  # the endless body is not read
    ],
)
async def test_answers(receiver, made, monkeypatch, caplog, answers, counts, hint):
    monkeypatch.setattr(notices, "TRY_SECONDS", 0.5)
    caplog.set_level(logging.INFO)
    receiver.say(*answers)
    await sent(made(), **counts)
    assert hint in caplog.records[-1].fields["problem"]
    assert len(receiver.got) == sum(counts.values())
    assert {(path, h["Lora-Router-Delivery"]) for path, h, _ in receiver.got} == {(HOOK, NOTICE.id)}


async def test_a_receiver_that_hangs_holds_up_nothing(receiver, made, monkeypatch, caplog):
    monkeypatch.setattr(notices, "CLOSE_SECONDS", 0.2)
    receiver.say(HANG)
    notifier = made()
    for arm in "abc":
        notifier.send(replace(NOTICE, arm=arm))
    await until(lambda: receiver.got)
    await notifier.close()
    await ended(notifier, failed=3)
    assert "the server ends" in caplog.records[-1].fields["problem"]
    await sent(notifier, failed=3, dropped=1)


async def test_what_waits_is_tried_once_more_at_the_end(receiver, made):
    receiver.say(500, OK)
    notifier = made(waits=notices.WAITS[-1:])
    await sent(notifier, retried=1)
    await notifier.close()
    await ended(notifier, retried=1, delivered=1)


async def test_refused_connections_and_broken_tls_are_tried_again_then_given_up(made, caplog):
    async def plain(_, writer) -> None:
        writer.write(b"HTTP/1.1 400 no\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        tls = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for url, hint in (("http://127.0.0.1:1", "ConnectError"), (tls, "SSL")):
            await sent(made(url + HOOK), failed=1, retried=2)
            assert hint in caplog.records[-1].fields["problem"]
    assert QUERY not in str([record.fields for record in caplog.records if hasattr(record, "fields")])


async def test_past_the_limit_the_oldest_is_dropped(receiver, made, caplog, monkeypatch):
    monkeypatch.setattr(notices, "LIMIT", 2)
    receiver.say(500, OK)
    notifier = made(waits=(0.3,))
    await sent(notifier, retried=1)
    for arm in "bc":
        notifier.send(replace(NOTICE, arm=arm))
    await ended(notifier, retried=1, dropped=1, delivered=2)
    (dropped,) = (r for r in caplog.records if r.message == "experiment notice dropped")
    assert dropped.fields["delivery"] == NOTICE.id
    assert [json.loads(body)["arm"] for _, _, body in receiver.got] == ["new", "b", "c"]


def test_a_signature_is_of_body_time_and_secret():
    signature, verify = notices.signature, notices.verify
    header = signature(SECRET, b"{}", 1000.9)
    assert header.startswith("t=1000,v1=")
    assert verify(SECRET, header, b"{}", 1300)
    assert not any(verify(SECRET, header, b"{}", now) for now in (699, 1301))
    assert not verify(SECRET, header, b"{ }", 1000)
    assert not verify("other", header, b"{}", 1000)
    assert not verify("", signature("", b"{}", 1000), b"{}", 1000)
    later, far = header.replace("1000", "1001"), header.replace("1000", "9" * 5000)
    for wrong in ("", "t=,v1=", "v1=00", header + "0", header.upper(), later, far):
        assert not verify(SECRET, wrong, b"{}", 1000)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        *((url, "https://HOST/PATH") for url in ("h/x", "https:///x", "https://h:99999/", "https://[::1/")),
        *((url, "https://HOST/PATH") for url in ("https://h /x", "https://h/\n")),
        *(("ftp://h/x", "must begin with https://"), ("", "set both")),
        ("https://ann:pass-word@h/", "use experiments.webhook_secret"),
    ],
)
def test_a_wrong_setting_says_what_to_do_and_a_right_one_nothing(url, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        check_webhook(url and f"{url}?{QUERY}", SECRET)
    assert not any(hidden in caught.value.message for hidden in (SECRET, QUERY, "pass-word"))
    for right in ("", "http://127.0.0.1:8080/x", "https://[::1]/", f"https://hooks.example/a@b?{QUERY}"):
        check_webhook(right, SECRET if right else "")
