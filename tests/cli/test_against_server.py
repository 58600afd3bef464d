"""The commands against the real server, with a fake engine behind it."""

import asyncio
import json
import re
import signal
import sys

import pytest

from router.engine.fake import FakeEngine
from tests.fakes import adapter


@pytest.fixture
def command(server, cli, monkeypatch):
    """Run a command in a thread while the server goes on in this loop."""
    monkeypatch.setenv("LORA_ROUTER_SERVER", server.address)

    async def run(*arguments: str):
        done = await asyncio.to_thread(cli, *arguments)
        return done.code, done.out, done.err

    return run


async def test_ask_streams_the_answer_of_the_routed_adapter(command):
    code, out, err = await command("ask", "a medical question")
    assert code == 0
    assert "medical question" in out
    assert err.splitlines()[0] == "medical@1.0.0  confidence 0.90  by words  (classified)"


async def test_ask_the_base_when_nobody_is_sure(command):
    code, _, err = await command("ask", "hello there")
    assert code == 0
    assert err.startswith("base  (abstained: needed 0.50)")


async def test_a_prompt_that_is_too_long_is_refused_not_cut(command):
    code, out, err = await command("ask", "word " * 5000)
    assert (code, out) == (2, "")
    assert re.search(r"need at least 2\d{4} tokens, the limit is \d+$", err.strip())


async def test_route_tells_the_votes(command):
    code, out, _ = await command("route", "a legal question")
    assert code == 0
    assert out.splitlines()[-1].startswith("legal@2.0.0  confidence 0.90  by words  (classified)  in ")


@pytest.mark.slow
async def test_adapters_are_listed_loaded_and_unloaded(command):
    _, out, _ = await command("adapters", "list")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["legal", "medical"]
    assert (await command("adapters", "load", "medical"))[1].startswith("medical@1.0.0 is ready")
    assert (await command("adapters", "unload", "medical"))[1].endswith("4.1 kB freed\n")
    code, out, _ = await command("adapters", "show", "medical@1.0.0", "--json")
    assert json.loads(out)["state"] == "offloaded"
    code, _, err = await command("adapters", "show", "nobody")
    assert code == 1
    assert "not found" in err


async def test_why_a_version_is_not_routed_to_what_to_do_and_who_overruled(command, fakes):
    closed = "not routed to by itself: no report.json"
    fakes.registry.put(adapter("medical", "1.1.0", gate=closed, gate_advice="run it, or overrule"))
    listed = (await command("adapters", "list"))[1].splitlines()
    assert listed[-3].endswith(closed)
    assert listed[-1].endswith(": lora-router adapters show NAME")
    shown = (await command("adapters", "show", "medical@1.1.0"))[1]
    assert re.search(f"\nrouting +{closed}\nto do +run it, or overrule\n", shown)
    code, _, err = await command("adapters", "default", "medical@1.1.0")
    assert code == 1
    assert closed in err
    forced = await command("adapters", "default", "medical@1.1.0", "--force", "--reason", "ticket 7")
    assert forced[1] == "medical@1.1.0 is the default, before it was medical@1.0.0\n"
    shown = (await command("adapters", "show", "medical@1.1.0"))[1]
    assert re.search("\nrouting +routed to by itself\n", shown)
    assert re.search(rf'overruled +by 127\.0\.0\.1 at .* UTC, "ticket 7"; the gate had said: {closed}', shown)


@pytest.mark.slow
async def test_ctrl_c_frees_the_row(start_server):
    engine = FakeEngine(step_seconds=0.05)
    app = await start_server(engine=engine)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "router.cli", "ask", "--server", app.address, "-n", "500", "word " * 300),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await child.stdout.readexactly(5)
    assert engine.status().running == 1
    child.send_signal(signal.SIGINT)
    await child.communicate()
    assert child.returncode == 130
    for _ in range(40):
        if not engine.status().running:
            break
        await asyncio.sleep(0.05)
    assert engine.status().running == 0
