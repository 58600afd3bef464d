"""`make demo`: what is asked, what it shows, and that a server which ends is told."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples import demo
from examples.demo import (
    BASE,
    DROPPED,
    DROPPED_PROMPT,
    PINNED,
    PROMPTS,
    DemoRequest,
    DemoServer,
    batching_summary,
    brief,
    demo_server,
    print_answers,
    requests_for,
    until_routed,
)
from router.cli.command import CliError
from router.models import fetch_base, fetch_encoder
from router.types import AdapterRef, Decision, Reason, Vote, VoteError
from tests.commands import without_network

ROOT = Path(__file__).parents[1]


def test_known_adapters_are_found_by_routing_and_unknown_ones_named():
    asked = requests_for(["medical", "my-own"])
    assert [one.expected for one in asked] == ["medical", "medical", "my-own", "", ""]
    assert [one.prompt == PINNED for one in asked] == [False, False, True, False, False]


def test_no_prompt_is_training_data():
    files = sorted((ROOT / "recipes" / "data").glob("*.train.jsonl.gz"))
    assert files, "the training data of the recipes moved"
    texts = set()
    for path in files:
        with gzip.open(path, "rt") as lines:
            texts |= {json.loads(line)["prompt"] for line in lines}
    asked = {prompt for prompts in (*PROMPTS.values(), BASE) for prompt in prompts}
    assert not asked & texts


def test_the_table_and_the_summary(capsys):
    medical = AdapterRef("medical", "1.0.0")
    asked = [
        DemoRequest(
            "medical", "Which\nchapter?", decision=Decision(medical, Reason.CLASSIFIED, confidence=0.93)
        ),
        DemoRequest(
            "", "Why?", decision=Decision(None, Reason.ABSTAINED), text="Because.", first_token=0.2, tokens=30
        ),
        DemoRequest("", "Lost", error="UNAVAILABLE: gone"),
    ]
    print_answers(asked)
    header, first, second, lost = capsys.readouterr().out.splitlines()
    assert header.split() == ["ASKED", "ANSWERED", "BY", "CONFIDENCE", "FIRST", "TOKEN", "ANSWER"]
    assert first.split()[:5] == ["Which", "chapter?", "medical@1.0.0", "0.93", "classified"]
    assert second.split() == ["Why?", "base", "0.00", "abstained", "200", "ms", "Because."]
    assert lost.endswith("UNAVAILABLE: gone")
    expected = "30 tokens by 1 adapter and the base in 10 steps of one base: 3.0 tokens a step"
    assert batching_summary(asked, 10) == expected


def test_brief_is_one_line():
    assert brief("a\n b   c", 10) == "a b c"
    assert brief("x" * 20, 5) == "xxxx…"


class Learning:
    """A client of a server that routes to the copied adapter once its classifiers have learned."""

    def __init__(self, *late: tuple[str, ...]) -> None:
        self.late = list(late)

    async def route(self, prompt: str) -> Decision:
        if not self.late:
            return Decision(AdapterRef(DROPPED, "1.0.0"), Reason.CLASSIFIED)
        votes = [Vote(name, error=VoteError.NOT_READY) for name in self.late.pop(0)]
        return Decision(None, Reason.ABSTAINED, votes=(Vote("shout", declined=True), *votes))


async def test_it_says_for_whom_it_waits_until_the_new_adapter_is_routed_to(capsys, monkeypatch):
    monkeypatch.setattr(demo, "SAY_SECONDS", 0.0)
    await until_routed(Learning(("examples", "multilingual"), (), ("examples",)))
    lines = [line.split(": ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["still learning: examples, multilingual", "not routed yet", "still learning: examples"]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{"level": "warning", "event": "no native operations"}', "no native operations"),
        ('{"level": "info", "event": "1 of 14 files compiled"}', "0 s: 1 of 14 files compiled"),
        ("what a library printed", "0 s: what a library printed"),
    ],
)
def test_it_shows_what_the_server_does_until_it_serves(line, shown, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "SAY_SECONDS", 0.0)
    log = tmp_path / "log"
    log.write_text(f"{line}\n")
    ends_at_the_third_look = SimpleNamespace(poll=iter([None, None, 1]).__next__, returncode=1)
    with pytest.raises(CliError, match="Run it again: what was installed, fetched and compiled is kept"):
        DemoServer(ends_at_the_third_look, log).wait_until_ready()
    assert capsys.readouterr().out.splitlines()[0] == f"  {shown}"


@pytest.mark.slow
def test_a_server_that_ends_is_told_with_its_last_lines(capsys, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_DIR", "absent")
    with (
        pytest.raises(CliError, match="the server ended with code 2; its last lines are above"),
        demo_server() as server,
    ):
        server.wait_until_ready()
    assert "absent is no folder" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_demonstration(tmp_path):
    """In a network namespace where only loopback exists, if there are any: a filled cache is enough."""
    fetch_base(), fetch_encoder()
    command = [sys.executable, "-c", "from router.cli.__main__ import main; main('examples.demo')"]
    done = subprocess.run(
        without_network(command) or command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests are not classified" not in done.stderr  # the encoder is there
    assert " base " in done.stdout
    assert "tokens a step" in done.stdout
    before, after = [line for line in done.stdout.splitlines() if line.startswith(DROPPED_PROMPT[:40])]
    assert " base " in before
    assert f" {DROPPED}@1.0.0 " in after
    assert after.endswith("8 pm")
    assert "server stopped" in done.stdout
    assert not list((tmp_path / "lora-router" / "demo").iterdir())
