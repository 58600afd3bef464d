"""Which files of `router/` run for a request, a new version and an outcome: `python -m tests.walk`.

A server on the real base gets a plugin that notes each function that is called while a file exists. What also
runs in an idle second is not counted. `tests/test_walk.py` compares the files with `docs/architecture.md`.
The server is slow under the profile hook: time nothing here.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from router.client import ArmSpec, Client, Outcome, Spec, metric
from router.types import AdapterRef
from tests.serving import serving

ROOT = Path(__file__).parents[1]
ADAPTERS = ROOT / "adapters"
NAMED, CLASSIFIED, VERSION, OUTCOME = "named adapter", "classified request", "new version", "outcome"
FRENCH = "Translate to French: a small fast editor for config files"

# It is `async` to run in the thread of the event loop; the other threads of a request begin later.
PROFILER = """
import json, os, sys, threading, time
from pathlib import Path

import router
from router import hookimpl

CALLS, RESULT = Path(os.environ["WALK_CALLS"]), Path(os.environ["WALK_RESULT"])
ROUTER = str(Path(router.__file__).parent) + "/"
noting, seen = False, {}


def note(frame, event, argument):
    code = frame.f_code
    if noting and event == "call" and code.co_filename.startswith(ROUTER):
        seen.setdefault((code.co_filename.removeprefix(ROUTER), code.co_qualname), None)


def follow():
    global noting
    sys.setprofile(None)
    while True:
        if CALLS.exists() != noting:
            if noting:
                noting = False
                temporary = RESULT.with_suffix(".new")
                temporary.write_text(json.dumps(list(seen)))
                temporary.replace(RESULT)
            else:
                seen.clear()
                noting = True
        time.sleep(0.02)


@hookimpl
async def on_startup(server, settings):
    threading.setprofile(note)
    sys.setprofile(note)
    threading.Thread(target=follow, daemon=True).start()
"""


@dataclass(frozen=True)
class Walk:
    """The files of `router/` that ran, by their paths below it and in this order, and how many functions."""

    files: list[str]
    functions: int


class Walker:
    """Notes what runs in a server that has the plugin."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self._idle: set[tuple[str, str]] = set()

    def learn_idle(self, seconds: float = 2.0) -> None:
        """Waits until no classifier learns, and leaves out of later walks what runs then."""
        until = time.monotonic() + 120
        while True:
            self._idle = set(self._noted(lambda: time.sleep(seconds)))
            if not any(file == "engine/runner.py" for file, _ in self._idle):
                return
            assert time.monotonic() < until, "the server does not come to rest"

    def walk(self, work: Callable[[], object], *, idle: bool = False) -> Walk:
        """What runs while `work` does; with `idle` also what runs without work."""
        own = [call for call in self._noted(work) if idle or call not in self._idle]
        files = [file for file, _ in own if "_pb2" not in file]
        return Walk(list(dict.fromkeys(files)), len(own))

    def _noted(self, work: Callable[[], object]) -> list[tuple[str, str]]:
        calls, result = self.folder / "calls", self.folder / "result.json"
        result.unlink(missing_ok=True)
        calls.touch()
        time.sleep(0.2)  # the plugin looks each 20 ms
        work()
        time.sleep(0.2)  # for what follows an answer
        calls.unlink()
        while not result.exists():
            time.sleep(0.02)
        return [(file, function) for file, function in json.loads(result.read_text())]


@contextmanager
def walking(folder: Path, *flags: str) -> Iterator[Walker]:
    """A server with the shipped translation adapter, two classifiers, and the plugin."""
    (folder / "adapters").mkdir()
    (folder / "plugins").mkdir()
    shutil.copytree(ADAPTERS / "translation", folder / "adapters" / "translation")
    (folder / "plugins" / "profiler.py").write_text(PROFILER)
    paths = {
        "WALK_CALLS": str(folder / "calls"),
        "WALK_RESULT": str(folder / "result.json"),
        "XDG_STATE_HOME": str(folder / "state"),
    }
    more = (
        "--set",
        "gate=off",
        "--set",
        "experiments_look_seconds=1",
        "--set",
        "load_plugins=keywords,linear,profiler",
        *flags,
    )
    with serving(folder, *more, **paths) as (_, address):
        yield Walker(folder, address)


def request_walks(walker: Walker) -> dict[str, Walk]:
    """Of a request that names its adapter, and of one that is classified."""
    with Client(walker.address) as client:

        def ask(adapter: str = "") -> None:
            for _ in client.stream(FRENCH, adapter=adapter, max_tokens=2):
                pass

        for adapter in ("translation", ""):
            ask(adapter)  # first calls do work of their own
        walker.learn_idle()
        return {
            NAMED: walker.walk(lambda: ask("translation")),
            CLASSIFIED: walker.walk(lambda: ask()),
        }


def version_walk(walker: Walker) -> Walk:
    """Of a folder that is dropped in, until its version has answered; an idle look is part of it."""

    def add() -> None:
        copy = walker.folder / "copy"
        shutil.copytree(ADAPTERS / "translation", copy)
        manifest = copy / "adapter.toml"
        manifest.write_text(manifest.read_text().replace('version = "1.0.0"', 'version = "1.1.0"'))
        copy.rename(walker.folder / "adapters" / "newer")
        with Client(walker.address) as client:
            until = time.monotonic() + 60
            while "1.1.0" not in {adapter.ref.version for adapter in client.adapters.list()}:
                assert time.monotonic() < until, "the version does not appear"
                time.sleep(0.1)
            client.generate(FRENCH, adapter="translation@1.1.0", max_tokens=1)

    return walker.walk(add, idle=True)


def outcome_walk(walker: Walker) -> Walk:
    """Of answers and outcomes in an experiment on both versions of `version_walk`, until its report."""
    arms = tuple(
        ArmSpec(name, 0.5, AdapterRef("translation", version))
        for name, version in (("old", "1.0.0"), ("new", "1.1.0"))
    )
    spec = Spec(
        hypothesis="1.1.0 is better",
        route="translation",
        arms=arms,
        control="old",
        primary=metric("right"),
        min_units=2,
        window=1.0,
    )

    def run() -> None:
        with Client(walker.address) as client:
            client.experiments.create("walked", spec)
            client.experiments.start("walked")
            for number in range(4):
                unit = f"user-{number}"
                client.generate(FRENCH, adapter="translation", unit=unit, max_tokens=1)
                client.experiments.record_outcome(
                    Outcome("right", 1.0, experiment="walked", unit=unit, key=unit)
                )
            time.sleep(spec.window + 1)  # until the units' windows are over
            client.experiments.report("walked")

    return walker.walk(run, idle=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name, walking(Path(name)) as walker:
        walks = request_walks(walker) | {VERSION: version_walk(walker)}
        for kind, walk in (walks | {OUTCOME: outcome_walk(walker)}).items():
            print(f"{kind}: {len(walk.files)} files, {walk.functions} functions", *walk.files, sep="\n   ")
