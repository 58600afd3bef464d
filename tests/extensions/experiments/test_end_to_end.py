"""An experiment from plan to promotion on the real base, with simulated users through gRPC.

Control is an adapter trained on a tenth of the data (`weaker/`; its recipe stands beside it), the other arm
the one that ships. Users ask questions of the test split; whether the answer is right is their outcome.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from router.cli.main import run as command
from router.client import AsyncClient
from router.extensions.experiments.client import (
    Accepted,
    ArmSpec,
    AsyncExperiments,
    Lifecycle,
    Outcome,
    Spec,
    metric,
)
from router.types import AdapterRef
from tests.serving import serving

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "adapters" / "medical"
WEAKER = Path(__file__).parent / "weaker"
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter.toml")
OLD, NEW = "1.0.0", "1.1.0"
ROUTE, USERS = "even", 320
QUESTIONS = 64  # so many users ask the same: the KV cache answers half of their prompts
WINDOW = 20.0  # seconds; outcomes come right after the answers, however slow these are on a busy machine
IN_FLIGHT = 16  # on a route
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def install(source: Path, name: str, version: str, folder: Path) -> None:
    """A copy of an adapter under another name and number."""
    target = folder / "adapters" / name / version
    target.mkdir(parents=True)
    for file in FILES:
        shutil.copy(source / file, target / file)
    manifest = target / "adapter.toml"
    text = re.sub(
        "^name = .*$", f'name = "{name}"', manifest.read_text(encoding="utf-8"), count=1, flags=re.M
    )
    text = re.sub("^version = .*$", f'version = "{version}"', text, count=1, flags=re.M)
    manifest.write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with two versions on every route; no report cards, so no gate."""
    folder = tmp_path_factory.mktemp("served")
    install(WEAKER, ROUTE, OLD, folder)
    install(SHIPPED, ROUTE, NEW, folder)
    (folder / "plugins").mkdir()
    with serving(folder, "--set", "gate=off", XDG_STATE_HOME=str(folder / "state")) as (_, where):
        yield where


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(address) as made:
        yield made


PLAN = Spec(
    hypothesis="1.1.0 answers more users right than 1.0.0",
    route=ROUTE,
    arms=(ArmSpec("old", 0.5, AdapterRef(ROUTE, OLD)), ArmSpec("new", 0.5, AdapterRef(ROUTE, NEW))),
    control="old",
    primary=metric("right"),
    guardrails=(metric("error", higher_is_better=False, margin=0.1),),
    planned_units=USERS,
    min_units=100,
    window=WINDOW,
)


async def run(client: AsyncClient) -> None:
    """Every user asks one question and reports whether the answer was right; then the window closes."""
    await client.adapters.set_default(f"{ROUTE}@{OLD}")
    await AsyncExperiments(client).create(ROUTE, PLAN)
    await AsyncExperiments(client).start(ROUTE)
    draw = random.Random(11)
    with gzip.open(ROOT / "recipes" / "data" / "medical.test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = draw.sample([json.loads(line) for line in file], QUESTIONS)
    asked = draw.choices(rows, k=USERS)
    places = asyncio.Semaphore(IN_FLIGHT)

    async def user(number: int) -> None:
        row = asked[number]
        async with places:
            answer = await client.generate(row["prompt"], adapter=ROUTE, unit=f"user-{number}", max_tokens=24)
            right = float(answer.text.strip() == row["response"])
            told = Outcome("right", right, response_id=answer.response_id)
            assert await AsyncExperiments(client).record_outcome(told) is Accepted.COUNTED

    async with asyncio.TaskGroup() as group:
        for number in range(USERS):
            group.create_task(user(number))
    await asyncio.sleep(WINDOW + 1)


async def default_version(client: AsyncClient, route: str) -> str:
    return next(a.ref.version for a in await client.adapters.list() if a.default and a.ref.name == route)


async def test_the_better_version_is_found_promoted_and_rolled_back(
    client: AsyncClient, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(client)
    html = tmp_path / "report.html"
    words = ["experiments", "report", ROUTE, "--server", address, "--html", str(html)]
    assert await asyncio.to_thread(command, words) == 0
    assert "promote" in capsys.readouterr().out
    page = html.read_text(encoding="utf-8")
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/", "")  # nothing is fetched
    await found_promoted_and_rolled_back(client)


async def found_promoted_and_rolled_back(client: AsyncClient) -> None:
    report = await AsyncExperiments(client).report(ROUTE)
    assert (report.verdict.decision, report.arm) == ("promote", "new"), report.verdict.text
    found = report.arms[0].primary
    assert found is not None
    assert found.low > 0
    assert sum(found.units) == USERS
    assert not [check.name for check in report.checks if check.failed]
    done = await AsyncExperiments(client).promote(ROUTE, reason="shown")
    assert (done.default, done.previous) == (AdapterRef(ROUTE, NEW), AdapterRef(ROUTE, OLD))
    assert (await AsyncExperiments(client).get(ROUTE)).state is Lifecycle.STOPPED
    assert await default_version(client, ROUTE) == NEW
    await AsyncExperiments(client).roll_back(ROUTE, reason="rehearsal")
    assert await default_version(client, ROUTE) == OLD
