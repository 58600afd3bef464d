"""An experiment from plan to promotion on the real base, with simulated users through gRPC.

Control is an adapter trained on a tenth of the data (`weaker/`; its recipe stands beside it), the other arm
the one that ships. Users ask questions of the test split; whether the answer is right is their outcome.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from router.client import Accepted, ArmSpec, AsyncClient, ClientError, Lifecycle, Outcome, Spec, metric
from router.training.data import read_rows
from router.types import AdapterRef
from tests.serving import serving

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "adapters" / "medical"
WEAKER = Path(__file__).parent / "weaker"
FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter.toml")
OLD, NEW = AdapterRef("medical", "1.0.0"), AdapterRef("medical", "1.1.0")
EQUAL, CANARY = 0.5, 0.1
USERS = {EQUAL: 320, CANARY: 900}
MARGIN = {EQUAL: 0.1, CANARY: 0.2}  # of errors; 90 users without one show less than 160
LEAST = {EQUAL: 100, CANARY: 60}  # users in the smaller arm
WINDOW = 6.0  # seconds; outcomes come right after the answers
IN_FLIGHT = 16
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def install(source: Path, ref: AdapterRef, folder: Path) -> None:
    """A copy of an adapter as a version of another number."""
    target = folder / "adapters" / ref.name / ref.version
    target.mkdir(parents=True)
    for name in FILES:
        shutil.copy(source / name, target / name)
    manifest = target / "adapter.toml"
    lines = manifest.read_text(encoding="utf-8").splitlines()
    wanted = [f'version = "{ref.version}"' if line.startswith("version = ") else line for line in lines]
    manifest.write_text("\n".join(wanted) + "\n", encoding="utf-8")


@asynccontextmanager
async def two_versions(old: Path, folder: Path) -> AsyncIterator[tuple[AsyncClient, str]]:
    """A server with `old` as the default and the shipped adapter beside it; no report cards, so no gate."""
    install(old, OLD, folder)
    install(SHIPPED, NEW, folder)
    (folder / "plugins").mkdir()
    flags = ("--set", "gate=off", "--set", "experiments_look_seconds=1")
    async with (
        serving(folder, *flags, XDG_STATE_HOME=str(folder / "state")) as (_, address),
        AsyncClient(address) as client,
    ):
        await client.adapters.set_default(str(OLD))
        yield client, address


def plan(alpha: float, share: float) -> Spec:
    """Old against new, by the share of users who got a right answer; `share` of them have the new one."""
    return Spec(
        hypothesis="1.1.0 answers more users right than 1.0.0",
        route="medical",
        arms=(ArmSpec("old", 1 - share, OLD), ArmSpec("new", share, NEW)),
        control="old",
        primary=metric("right"),
        guardrails=(metric("error", higher_is_better=False, margin=MARGIN[share]),),
        alpha=alpha,
        planned_units=USERS[share],
        min_units=LEAST[share],
        window=WINDOW,
    )


async def run(client: AsyncClient, alpha: float = 0.05, share: float = EQUAL) -> None:
    """Every user asks one question and tells whether the answer was right; then the window closes."""
    await client.experiments.create("versions", plan(alpha, share))
    await client.experiments.start("versions")
    rows = list(read_rows(ROOT / "recipes" / "data" / "medical.test.jsonl.gz"))
    asked = random.Random(11).choices(rows, k=USERS[share])
    places = asyncio.Semaphore(IN_FLIGHT)

    async def user(number: int) -> None:
        row = asked[number]
        async with places:
            answer = await client.generate(
                row.prompt, adapter="medical", unit=f"user-{number}", max_tokens=24
            )
            right = float(answer.text.strip() == row.response)
            told = Outcome("right", right, response_id=answer.response_id)
            assert await client.experiments.record_outcome(told) is Accepted.COUNTED

    async with asyncio.TaskGroup() as group:
        for number in range(USERS[share]):
            group.create_task(user(number))
    await asyncio.sleep(WINDOW + 1)


async def default_version(client: AsyncClient) -> str:
    """Of medical."""
    return next(a.ref.version for a in await client.adapters.list() if a.default)


@pytest.mark.parametrize("share", [EQUAL, CANARY])
async def test_the_better_version_is_found_promoted_and_rolled_back(tmp_path: Path, share: float) -> None:
    async with two_versions(WEAKER, tmp_path) as (client, address):
        await run(client, share=share)
        report = await client.experiments.report("versions")
        assert (report.verdict.decision, report.arm) == ("promote", "new"), report.verdict.text
        found = report.arms[0].primary
        assert found is not None
        assert found.low > 0
        assert sum(found.units) == USERS[share]
        assert not [check.name for check in report.checks if check.failed]
        html = tmp_path / "report.html"
        command = (sys.executable, "-m", "router.cli", "experiments", "report", "versions")
        shown = await asyncio.to_thread(
            subprocess.run,
            [*command, "--server", address, "--html", str(html)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr
        assert "promote" in shown.stdout
        page = html.read_text(encoding="utf-8")
        assert "<svg" in page
        assert "http" not in page.replace("http://www.w3.org/", "")  # nothing is fetched
        done = await client.experiments.promote("versions", reason="shown")
        assert (done.default, done.previous) == (NEW, OLD)
        assert (await client.experiments.get("versions")).state is Lifecycle.STOPPED
        assert await default_version(client) == NEW.version
        await client.experiments.roll_back("versions", reason="rehearsal")
        assert await default_version(client) == OLD.version


async def test_equal_versions_give_no_verdict(tmp_path: Path) -> None:
    async with two_versions(SHIPPED, tmp_path) as (client, _):
        await run(client, alpha=0.001)  # a false verdict is as rare as that
        report = await client.experiments.report("versions")
        assert report.verdict.decision == "undecided", report.verdict.text
        with pytest.raises(ClientError, match="undecided"):
            await client.experiments.promote("versions", "new")
