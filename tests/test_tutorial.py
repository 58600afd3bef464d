"""The commands of docs/tutorial.md on the real base: the four of chats as they are and on other data,
the others in the small form that the page itself tells of."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

from tests.addresses import free_address

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FOUR, COMMANDS = (
    [shlex.split(line) for block in blocks for line in block.splitlines()]
    for blocks in (BLOCKS[:1], BLOCKS[1:])
)
WAIT = 300.0
LISTED = ["lora-router", "adapters", "list"]


def small(command: list[str]) -> list[str]:
    """With the flags that the page names for a rehearsal."""
    found = re.search(r"add `(--steps \d+)` to the second command and `(--rows \d+)` to the fourth", PAGE)
    assert found
    assert "there, the last command needs `--force`, too" in PAGE
    flags = {COMMANDS[1][2]: found[1], COMMANDS[3][2]: found[2]}
    more = ["--force"] if command is COMMANDS[-1] else flags.get(" ".join(command[2:3]), "").split()
    return [*command, *more]


class Terminal:
    """A folder, a server that may run, and commands one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = free_address()
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        state = {"XDG_STATE_HOME": str(folder / "state"), "PATH": path, "LORA_ROUTER_SERVER": self.address}
        listen = {"LORA_ROUTER_LISTEN": self.address, "LORA_ROUTER_METRICS_LISTEN": ""}
        code = {"PYTHONPATH": str(ROOT)}  # this checkout's, whichever one is installed
        self.environment = os.environ | state | listen | code
        self._server: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str]) -> str:
        """What it said, stdout and stderr."""
        ran = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, f"{shlex.join(command)}\n{ran.stdout}{ran.stderr}"
        return ran.stdout + ran.stderr

    def serve(self, command: list[str]) -> None:
        """Start it and go on once it answers."""
        with (self.folder / "server.log").open("wb") as log:
            self._server = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=log, stderr=log
            )
        self.wait_for("is ready", lambda: (self.folder / "server.log").read_text())

    def wait_for(self, text: str, look: Callable[[], str]) -> None:
        end = time.monotonic() + WAIT
        while text not in (seen := look()):
            assert time.monotonic() < end, seen
            assert self._server is not None
            assert self._server.poll() is None, seen
            time.sleep(0.5)

    def close(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            assert self._server.wait(60) == 0, (self.folder / "server.log").read_text()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    made = Terminal(tmp_path)
    yield made
    made.close()


def test_five_commands_stand_under_five_numbered_headings() -> None:
    parts = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    numbered = [part for part in parts if re.match(r"\d\. ", part)]
    first = [shlex.split(re.findall(r"```sh\n(.*?)\n", part)[0]) for part in numbered]
    assert [command[:3] for command in first] == [
        ["pip", "install", "-e"],
        ["lora-router", "adapters", "new"],
        ["lora-router", "adapters", "train"],
        ["lora-router", "adapters", "evaluate"],
        ["lora-router", "serve"],
    ]
    assert "train" in (metadata("lora-router").get_all("Provides-Extra") or [])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_four_commands_lead_from_a_csv_of_chats_to_a_routed_adapter(terminal: Terminal) -> None:
    shutil.copy(ROOT / "examples" / "tutorial" / "chats.csv", terminal.folder)
    new, train, serve, ask = FOUR
    terminal.run(new)
    terminal.run(train)
    terminal.serve(serve)
    learned = ["lora-router", "route", *ask[2:]]  # until all classifiers have learned; no answer to wait for
    terminal.wait_for("bikes@1.0.0", lambda: terminal.run(learned))
    answered = terminal.run(ask)
    assert "(classified)" in answered
    assert "deposit" in answered


THINGS = ("the red bike", "my helmet", "a child seat", "the old lock", "your pump", "the blue trailer")
QUESTIONS = (
    *("When do you open for", "What do I pay for", "Where can I leave", "May I swap", "Who mends"),
    *("How do I book", "When must I return", "Can I cancel", "Is there a deposit for", "Who insures"),
)
ASKED = [f"{question} {thing}?" for thing in THINGS for question in QUESTIONS]
CANNED = ["We open at nine each day.", "Our prices hang at the door.", "Write to help@example.com, please."]
LABELS = ["hours", "prices", "service"]


def rows_of(kind: str) -> str:
    """A small file of this kind: its questions are for one of three answers, or for free text."""
    place = {question: min(number % 10, 2) for number, question in enumerate(ASKED)}
    if kind == "faq.csv":
        return "question,answer\n" + "".join(f'{q},"{CANNED[place[q]]}"\n' for q in ASKED)
    if kind == "labels.jsonl":
        return "".join(json.dumps({"text": q, "label": LABELS[place[q]]}) + "\n" for q in ASKED)
    free = {q: f"You asked: {q} {CANNED[place[q]]} Anything else?" for q in ASKED}
    if kind == "alpaca.json":
        return json.dumps([{"instruction": q, "input": "", "output": free[q]} for q in ASKED])
    assert kind == "sharegpt.json"
    chats = [[{"from": "human", "value": q}, {"from": "gpt", "value": free[q]}] for q in ASKED]
    return json.dumps([{"conversations": chat} for chat in chats])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("faq.csv", CANNED),
        pytest.param("labels.jsonl", LABELS, marks=pytest.mark.long),
        pytest.param("sharegpt.json", None, marks=pytest.mark.long),
        pytest.param("alpaca.json", None, marks=pytest.mark.long),
    ],
)
def test_each_kind_of_data_leads_to_an_adapter_that_serves(
    terminal: Terminal, kind: str, allowed: list[str] | None
) -> None:
    terminal.environment["LORA_ROUTER_LOAD_PLUGINS"] = ""
    (terminal.folder / kind).write_text(rows_of(kind))
    new, train, serve, _ = FOUR
    own = [kind if word == "chats.csv" else word for word in new]
    terminal.run([*own, "--steps", "4"])
    terminal.run(train)
    terminal.serve(serve)
    ready = re.compile(r"^bikes +1\.0\.0 \* +ready ", re.MULTILINE)
    terminal.wait_for("ready", lambda: "".join(ready.findall(terminal.run(LISTED))))
    said = terminal.run(
        ["lora-router", "ask", "--json", "--adapter", "bikes", "--max-tokens", "16", ASKED[0]]
    )
    answer = json.loads(said)
    assert answer["decision"]["adapter"] == "adapters/bikes/versions/1.0.0"
    assert answer["text"] in allowed if allowed else answer["text"]
    # Probes of the other adapters are long steps on a busy machine; a stop waits for a step for 2 s only.
    terminal.wait_for("idle", lambda: "idle" if " loading " not in terminal.run(LISTED) else "")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_commands_lead_from_the_csv_to_answers(terminal: Terminal) -> None:
    terminal.environment["LORA_ROUTER_LOAD_PLUGINS"] = "examples"
    shutil.copy(ROOT / "examples" / "tutorial" / "packages.csv", terminal.folder)
    said: dict[str, str] = {}
    for command in COMMANDS[1:]:  # the first installs what runs here already
        if command[:2] == ["lora-router", "serve"]:
            terminal.serve(command)
        else:
            said[shlex.join(command)] = terminal.run(small(command))
        if command[-1] == "adapters/shelves-1.1.0":  # as a reader would, the test looks again
            terminal.wait_for("1.1.0", lambda: terminal.run(LISTED))
    for name in ("adapter.toml", "REPORT.md"):
        assert (terminal.folder / "adapters" / "shelves" / name).is_file()
    asked = {key.split()[3]: text for key, text in said.items() if " ask --adapter " in key}
    named, pinned = asked["shelves"], asked["shelves@1.1.0"]
    assert "shelves@1.0.0  (explicit)" in named
    assert "shelves@1.1.0  (explicit)" in pinned
    assert "adapters default shelves@1.0.0" in list(said)[-1]
    assert "shelves@1.0.0 is the default, before it was shelves@1.1.0" in list(said.values())[-1]
