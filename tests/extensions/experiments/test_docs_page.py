"""docs/experiments.md: its commands run in order on a server with a fake engine, its words are the code's."""

from __future__ import annotations

import asyncio
import re
import shlex
import time
from pathlib import Path

import pytest

from router.cli.main import run
from router.client import Client
from router.config import Settings
from router.extensions.experiments.client import Experiments
from router.extensions.experiments.model import BUILT_IN, MetricSpec, Spec
from router.extensions.experiments.next_step import following
from router.extensions.experiments.runtime import LiveExperiments
from router.extensions.experiments.store.store import ExperimentStore
from router.extensions.experiments.verdict import VerdictDecision
from tests.fakes import adapter

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[3] / "docs" / "experiments.md").read_text(encoding="utf-8")
COMMANDS = [
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines()
]
(SCRIPT,) = re.findall(r"^```python\n(# rehearse.py.*?)^```", PAGE, re.M | re.S)
WINDOW = 3.0  # the page has 20 seconds


def arguments(line: str) -> list[str]:
    """Of a command of the page, in a form that takes seconds."""
    words = shlex.split(line.replace("window=20s", f"window={WINDOW:g}s"))[1:]
    more = {"aa": ["--units", "120"]}
    return [*words, *more.get(words[1], [])]


@pytest.fixture
async def target(start_server, fakes, tmp_path, monkeypatch):
    """A server with experiments and two versions of medical, in an empty folder."""
    fakes.engine.step_seconds = 0.0  # 1,500 users ask one after the other
    fakes.registry.put(adapter("medical", "1.1.0"))
    database = f"sqlite:///{tmp_path}/experiments.db"
    monkeypatch.setenv("LORA_ROUTER_DATABASE", database)  # for `export`, which reads it itself
    live = LiveExperiments(ExperimentStore(database), poll_seconds=60.0)
    await live.start()
    app = await start_server(**vars(fakes), experiments=live)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_ROUTER_SERVER", app.address)
    yield app.address
    await app.stop()
    await live.close()


def walk(target: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Everything that the page says to type; returns what commands printed and files hold."""
    said = {}
    for line in COMMANDS:
        if line == "python rehearse.py":
            exec(compile(SCRIPT, "rehearse.py", "exec"), {})  # the page's own code
            time.sleep(WINDOW + 0.5)
            continue
        command, _, file = line.partition(" > ")
        code = run(arguments(command))
        out, err = capsys.readouterr()
        assert code == 0, f"{line}\n{out}{err}"
        if file:
            Path(file).write_text(out)
        said[" ".join(arguments(command)[:2])] = out
    files = ("medical-v2.toml", "medical-v2.html", "values.csv")
    return said | {name: Path(name).read_text() for name in files}


async def test_the_way_from_plan_to_rollback_works_as_it_is_written(target, capsys):
    said = await asyncio.to_thread(walk, target, capsys)
    assert "thumbs_up" in said["medical-v2.toml"]
    assert "UNSOUND" not in said["experiments aa"]
    assert said["experiments plan"] in PAGE
    assert said["experiments report"].startswith("PROMOTE new: it is better than old.\n")
    assert "\nDifference: thumbs_up: +" in said["experiments report"]
    assert "\nerror (less is better) " in said["experiments report"]
    assert "country" in said["medical-v2.html"]
    assert "<svg" in said["medical-v2.html"]
    assert said["values.csv"].count("thumbs_up") == 1500
    assert "medical@1.1.0 is the default" in said["experiments promote"]
    assert "medical@1.0.0 is the default" in said["experiments rollback"]
    with Client(target) as client:
        found = await asyncio.to_thread(Experiments(client).report, "medical-v2")
    assert [entry.act for entry in found.audit][-1] == "roll back"
    assert following(found).startswith("Next: nothing")


def test_it_names_what_there_is():
    assert all(f"`{name}`" in PAGE for name in BUILT_IN)
    assert all(f"| {decision.value} |" in PAGE for decision in VerdictDecision)
    fields = {*Spec.__annotations__, *MetricSpec.__annotations__}
    table = PAGE.split("### Fields to think about\n")[1].split("###")[0]
    told = [
        n for row in table.splitlines()[3:] for n in re.findall(r"`(\w+)`", row.split("|")[1] if row else "")
    ]
    assert told
    assert set(told) <= fields
    settings = set(re.findall(r"`(experiments(?:_\w+)?)`", PAGE)) | set(
        re.findall(r"^(experiments\w*) =", PAGE, re.M)
    )
    assert settings == {name for name in Settings.model_fields if name.startswith("experiments")}
