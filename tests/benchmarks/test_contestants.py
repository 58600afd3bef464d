"""Contestants of a benchmark: a process each, nobody else's threads, a clear word when one dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks import contestants, peers
from benchmarks.answering import threading_settings
from benchmarks.contestants import Arm, Died, Entry, Field, environment, measure, physical_cores
from benchmarks.engine import AS_SERVED, MIXED, PLAIN, SERVED, enter
from benchmarks.engine import main as bench

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FAKE = """
import os, sys, time
from benchmarks.answering import about, answer

def run(work):
    {run}
    return {{"seconds": 1.0, "tokens": work["adapters"], "process": os.getpid()}}

def prepare():
    print("talks on standard output")
    {prepare}
    return about(3, "numpy"), run

answer(prepare)
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(contestants, "QUIET_SECONDS", 0.02)


def fake(name: str = "fake", run: str = "pass", prepare: str = "pass", **settings: str) -> Entry:
    code = FAKE.format(run=run, prepare=prepare)
    return Entry(name, [sys.executable, "-c", code], settings, "made up")


def work(adapters: int = 0) -> dict[str, object]:
    return {"prompts": [[1, 2]], "new": 1, "adapters": adapters}


def one_round(entry: Entry) -> None:
    with Field() as field:
        field.start(entry)
        field.ask(entry.name, work())


def eventually(true: Callable[[], bool], seconds: float = 20) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if true():
            return True
        time.sleep(0.05)
    return False


def test_each_has_a_process_of_its_own_that_lives_for_all_rounds():
    with Field() as field:
        said = {name: field.start(fake(name))["process"] for name in ("a", "b")}
        for _ in range(2):
            assert {name: field.ask(name, work())["process"] for name in said} == said
        assert len({*said.values(), os.getpid()}) == 3
    assert not [process for process in said.values() if psutil.pid_exists(process)]


def test_rounds_are_interleaved_and_the_first_is_not_counted(monkeypatch):
    asked = []
    with Field() as field:
        for name in ("a", "b"):
            field.start(fake(name))
        usual = field.ask
        monkeypatch.setattr(field, "ask", lambda name, work: asked.append((name, work)) or usual(name, work))
        arms = [Arm("one", "a", 1), Arm("two", "a", 2), Arm("other", "b", 3)]
        found = measure(field, arms, vocabulary=2000, rounds=2)
    assert [name for name, _ in asked] == ["a", "a", "b"] * 3
    assert found.speeds == {"one": [1, 1], "two": [2, 2], "other": [3, 3]}
    firsts = [work["prompts"][0][0] for _, work in asked]
    assert len(set(firsts)) == len(firsts)


def test_nobody_gets_settings_for_threads_but_those_it_asks_for(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("UNTOUCHED", "7")
    assert environment({})["UNTOUCHED"] == "7"
    with Field() as field:
        assert field.start(fake("peer"))["settings"] == {}
        assert field.start(fake("own", OMP_WAIT_POLICY="PASSIVE"))["settings"] == {
            "OMP_WAIT_POLICY": "PASSIVE"
        }
        peer, own = field.rows()
    assert peer["settings for threads"] == "none: the library's defaults"
    assert own["settings for threads"] == "OMP_WAIT_POLICY=PASSIVE"
    assert (peer["process"], peer["threads"], peer["as"]) == ("of its own", 3, "made up")
    assert peer["libraries"].startswith("numpy ")


def test_this_engine_is_set_as_the_server_sets_itself():
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "router").rglob("*.py"))
    set_there = dict(re.findall(r'os\.environ(?:\.setdefault\(|\[)"(\w+)"(?:, |\] = )"(\w+)"', sources))
    assert threading_settings(set_there) == SERVED


def test_what_benchmark_starts(monkeypatch):
    started: list[Entry] = []
    answer = {"kernels": "", "dtype": "bfloat16", "vocabulary": 9}
    field = Field()
    monkeypatch.setattr(field, "start", lambda entry: started.append(entry) or answer)
    assert enter(field, "base", "auto", peft=True) == 9
    assert len({entry.name for entry in started}) == len(started) == 5
    for entry in started:
        peer = entry.name in (PLAIN, MIXED)
        assert entry.command[2] == f"benchmarks.contestant_{'peft' if peer else 'engine'}"
        assert dict(entry.settings) == ({} if peer else SERVED)
        assert (entry.why == AS_SERVED) is not peer


def test_physical_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: {False: 4}[logical])
    assert physical_cores() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1})
    assert physical_cores() == 1
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    assert physical_cores() == 1


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("sys.exit('the base is not there')", "exit code 1"),
        ("print('the base is not there', file=sys.stderr, flush=True); os.kill(os.getpid(), 9)", "SIGKILL"),
        (
            # a child of the dead process holds its pipes open
            "os.fork() or time.sleep(60); sys.exit('the base is not there')",
            "exit code 1",
        ),
    ],
)
@pytest.mark.parametrize("when", ["prepare", "run"])
def test_a_contestant_that_dies_is_told_with_its_last_lines(fault, how, when):
    begin = time.monotonic()
    with pytest.raises(Died, match="the base is not there") as died:
        one_round(fake("PEFT", **{when: fault}))
    assert f"PEFT ended: {how}" in str(died.value)
    assert time.monotonic() - begin < 20


def test_one_that_died_between_rounds_is_told_too():
    with Field() as field:
        process = field.start(fake())["process"]
        os.kill(process, signal.SIGTERM)
        assert eventually(lambda: psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(Died, match="ended: SIGTERM"):
            field.ask("fake", work())


def test_a_dead_contestant_is_one_message_of_the_benchmark(monkeypatch):
    monkeypatch.setattr("benchmarks.engine.resolve_model", lambda name: name)
    monkeypatch.setattr("benchmarks.engine.ours", lambda *_: [sys.executable, "-c", "exit('no memory left')"])
    monkeypatch.setattr(sys, "argv", ["engine"])
    with pytest.raises(SystemExit, match=r"^error: lora-router ended: exit code 1.*\n  no memory left$"):
        bench()


def test_one_that_works_out_of_turn_is_told():
    spin = (
        "import threading; threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()"
    )
    with Field() as field:
        contestants.SETTLE_SECONDS, usual = 0.1, contestants.SETTLE_SECONDS
        try:
            field.start(fake("restless", prepare=spin))
            field.start(fake("calm", run="time.sleep(0.5)"))
            field.ask("calm", work())
        finally:
            contestants.SETTLE_SECONDS = usual
    assert field.idle > contestants.ALONE
    assert any(line.startswith("NOT ALONE") for line in field.notes())


def test_the_command_becomes_the_benchmark_so_that_signals_reach_it():
    command = [sys.executable, "-m", "router.cli", "bench", "--model", "nowhere/at-all"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd="/") as running:
        assert running.stderr
        assert eventually(lambda: "benchmarks.engine" in " ".join(psutil.Process(running.pid).cmdline()), 60)
        running.kill()


BENCHMARK = """
import sys
from benchmarks.contestants import Entry, Field, ending
with ending(), Field() as field:
    for name in ("waits", "works"):
        print(field.start(Entry(name, [sys.executable, "-c", sys.argv[1]]))["process"], flush=True)
    print("asked", flush=True)
    field.ask("works", {"prompts": [[1]], "adapters": 0})
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_benchmark_leaves_no_process(number, code):
    slow = FAKE.format(prepare="pass", run="time.sleep(60)")
    command = [sys.executable, "-c", textwrap.dedent(BENCHMARK), slow]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout
        lines = [running.stdout.readline().strip() for _ in range(3)]
        assert lines[2] == "asked"
        time.sleep(0.3)
        running.send_signal(number)
        assert running.wait(20) == code
    assert not [line for line in lines[:2] if psutil.pid_exists(int(line))]


def test_contestants_of_a_benchmark_that_was_killed_end_by_themselves():
    code = BENCHMARK + "\n"
    command = [sys.executable, "-c", code, FAKE.format(prepare="pass", run="time.sleep(1)")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as running:
        assert running.stdout
        lines = [running.stdout.readline().strip() for _ in range(3)]
        running.kill()
    assert eventually(lambda: not any(psutil.pid_exists(int(line)) for line in lines[:2]))


def test_vllm_gets_what_its_documentation_advises(monkeypatch, tmp_path):
    started: list[Entry] = []
    answer = {"dtype": "bfloat16", "vocabulary": 9}
    field = Field()
    monkeypatch.setattr(field, "start", lambda entry: started.append(entry) or answer)
    monkeypatch.setattr(peers, "resolve_model", lambda name: name)
    monkeypatch.setattr(peers, "find_library", lambda name: f"lib{name}.so.4")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 2)
    (tmp_path / "lib").mkdir()
    openmp = tmp_path / "lib" / "libiomp5.so"
    openmp.touch()
    assert peers.enter(field, tmp_path / "bin" / "python", "base", tmp_path) == 9
    own, *others = started
    assert (own.name, dict(own.settings)) == (peers.OURS, SERVED)
    assert [entry.settings["VLLM_CPU_OMP_THREADS_BIND"] for entry in others] == ["auto", "auto", "0,1", "0,1"]
    for entry in others:
        assert entry.settings["LD_PRELOAD"] == f"libtcmalloc_minimal.so.4:{openmp}"
        assert "OMP_WAIT_POLICY" not in entry.settings
        assert len(entry.command) == 6 + (8 if "8" in entry.name else 0)
    assert {arm.contestant for arm in peers.ARMS} == {entry.name for entry in started}
