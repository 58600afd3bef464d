"""Hooks while a server runs: its life, metrics and checks, requests and observers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tests.hooks import CHECK, Write, loaded, serving, status_of, write
from tests.server.helpers import until

__all__ = ["write"]


# -- the server's life, metrics, checks


LIFE = """
from pathlib import Path

calls = []

@hookimpl
async def on_startup(server):
    calls.append(("startup", server.address))

@hookimpl
def on_ready(server):
    calls.append(("ready", server.address))

@hookimpl
async def on_shutdown(server):
    Path("calls").write_text(repr(calls))
"""


async def test_a_plugin_is_told_of_the_servers_life(write: Write, tmp_path: Path) -> None:
    write("life.py", LIFE)
    async with serving() as (served, _):
        address = served.server.address
    assert (tmp_path / "calls").read_text() == repr([("startup", ""), ("ready", address)])


async def test_a_changed_plugin_is_ended_and_started_again(write: Write, tmp_path: Path) -> None:
    write("life.py", LIFE)
    async with serving() as (served, _):
        write("life.py", LIFE.replace('"ready"', '"ready again"'))
        await served.plugins.pick_up()
        assert (tmp_path / "calls").read_text().startswith("[('startup', '')")
    assert "ready again" in (tmp_path / "calls").read_text()


STEPS = """
from pathlib import Path

class Plugin:
    def __init__(self):
        self.steps = []

    @hookimpl
    async def on_startup(self, server):
        self.steps.append(("startup", server.address))

    @hookimpl
    def on_load(self, server):
        self.steps.append(("load", server.address != ""))

    @hookimpl
    def on_loaded(self, server):
        self.steps.append(("loaded", server.ready.is_set(), server.engine._started))

    @hookimpl
    def on_shutdown(self, server):
        Path("steps").write_text(repr(self.steps))
"""


async def test_a_plugins_object_follows_the_steps_of_a_start(write: Write, tmp_path: Path) -> None:
    write("steps.py", STEPS)
    async with serving():
        pass
    steps = [("startup", ""), ("load", True), ("loaded", False, True)]
    assert (tmp_path / "steps").read_text() == repr(steps)


def test_a_hook_is_a_function_or_a_method(write: Write) -> None:
    write("both.py", STEPS + "@hookimpl\ndef on_load(server): ...\n")
    assert "on_load is implemented twice" in status_of(loaded(), "both").error


async def test_a_plugin_that_fails_at_start_costs_itself(write: Write) -> None:
    write("bad.py", "@hookimpl\nasync def on_startup(server):\n    raise ValueError('no disk')\n")
    write("worse.py", "@hookimpl\ndef on_startup(server):\n    raise SystemExit(3)\n")
    async with serving() as (served, client):
        assert (await client.generate("hello", max_tokens=2)).text
        flaws = served.server.health.degraded
        assert any("plugin bad: on_startup: ValueError: no disk" in flaw for flaw in flaws)
        assert any("plugin worse: on_startup: RuntimeError" in flaw for flaw in flaws)
        assert any("no disk" in warning for warning in status_of(served.plugins, "bad").warnings)


METRICS = """
from prometheus_client import Counter

@hookimpl
def register_metrics(registry):
    Counter("my_greetings", "Greetings.", registry=registry).inc(3)
"""


async def test_metrics_and_checks_of_a_plugin_are_shown(write: Write) -> None:
    write("counting.py", METRICS)
    write("disk.py", CHECK.format("'the disk is nearly full'"))
    write("failing.py", CHECK.format("1 / 0"))
    async with serving() as (served, _):
        page = generate_latest(served.server.metrics.registry).decode()
        assert "my_greetings_total 3.0" in page
        health = served.server.health
        await until(lambda: "plugin disk: the disk is nearly full" in health.degraded, 5)
        await until(lambda: any("failing: register_checks: ZeroDivision" in f for f in health.degraded), 5)


# -- requests


REWRITE = """
from dataclasses import replace
from router.errors import InvalidRequest
from router.types import Turn

@hookimpl
def rewrite_request(request):
    if "fail" in request.text:
        raise KeyError("a@b.example")
    return replace(request, turns=(Turn("user", request.text.upper()),), request_id="changed")
"""


async def test_a_request_is_rewritten_before_it_is_routed(write: Write) -> None:
    write("upper.py", REWRITE)
    async with serving() as (served, client):
        answer = await client.generate("one two", max_tokens=8)
        assert "ONE TWO" in answer.text
        assert served.server.engine.jobs[-1].request_id != "changed"  # type: ignore[attr-defined]
        answer = await client.generate("fail not", max_tokens=8)
        assert "fail not" in answer.text
        (warning,) = status_of(served.plugins, "upper").warnings
        assert "rewrite_request failed 1 times, at last: KeyError at upper.py" in warning
        assert "a@b.example" not in warning


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("raise KeyError", "UNAVAILABLE"),
        ("import time; time.sleep(1)", "UNAVAILABLE"),
        ("return 3", "UNAVAILABLE"),
        ("raise PermissionDenied('not today')", "PERMISSION_DENIED"),
    ],
)
async def test_a_required_rewriter_that_fails_refuses(write: Write, body: str, code: str) -> None:
    write(
        "mask.py",
        f"""
        from router.errors import PermissionDenied

        @hookimpl(timeout_ms=200, required=True)
        def rewrite_request(request):
            {body}
        """,
    )
    async with serving() as (_, client):
        with pytest.raises(Exception, match=r"mask must rewrite|not today") as caught:
            await client.generate("one", max_tokens=2)
        assert getattr(caught.value, "code", code) == code


OBSERVE = """
import json
import re

@hookimpl
def on_decision(record):
    with open("log", "a") as file:
        print("decision", json.dumps(record.to_json()), file=file)

@hookimpl
def on_answer(record):
    with open("log", "a") as file:
        print("answer", json.dumps(record.to_json()), file=file)
"""


async def test_observers_get_records_in_order(write: Write, tmp_path: Path) -> None:
    write("log.py", OBSERVE)
    async with serving() as (_, client):
        answer = await client.generate("one two", max_tokens=8, labels={"team": "a"})
    lines = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert [kind for kind, _ in lines] == ["decision", "answer"]
    decision, ended = (json.loads(text) for _, text in lines)
    assert (decision["text"], decision["adapter"], decision["labels"]) == ("one two", "base", {"team": "a"})
    assert decision["request_id"] == ended["request_id"] == answer.response_id
    assert (ended["text"], ended["finish"], ended["error"]) == (answer.text, "stop", "")
    assert ended["completion_tokens"] == answer.usage.completion_tokens


async def test_a_slow_observer_costs_records_and_no_request(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.plugins.runtime.MOST_RECORDS", 1)
    monkeypatch.setattr("router.plugins.runtime.FLUSH_SECONDS", 0.0)
    write("slow.py", "import time\n@hookimpl\ndef on_decision(record):\n    time.sleep(5)\n")
    write("bad.py", "@hookimpl\ndef on_answer(record):\n    raise KeyError(record.text)\n")
    async with serving() as (served, client):
        slow, bad = (
            next(r for r in served.server.hooks.running() if r.plugin.name == name)
            for name in ("slow", "bad")
        )
        for count in range(1, 5):
            await asyncio.wait_for(client.generate("one", max_tokens=2), 3)
            # One record fits into the queue, so "bad" takes each before the next comes.
            await until(lambda: "on_answer" in bad.faults and bad.faults["on_answer"].count == count)  # noqa: B023
        assert slow.observer is not None
        assert slow.observer.dropped >= 2
        page = generate_latest(served.server.metrics.registry).decode()
        assert 'lora_router_plugin_faults_total{hook="on_answer",plugin="bad"} 4.0' in page
        assert f'lora_router_plugin_records_dropped_total{{plugin="slow"}} {slow.observer.dropped}' in page


def test_an_asynchronous_observer_is_refused(write: Write) -> None:
    write("late.py", "@hookimpl\nasync def on_answer(record): ...\n")
    assert "on_answer is asynchronous" in status_of(loaded(), "late").error


async def test_a_plugin_observes_reports_of_experiments(write: Write) -> None:
    write("seen.py", "@hookimpl\ndef on_report(report, server):\n    server.seen = report\n")
    async with serving() as (served, _):
        served.server.hooks.reported("a report")
        await until(lambda: getattr(served.server, "seen", "") == "a report")
