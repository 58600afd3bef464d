"""A server whose adapters are in an object store; all but the engine and the store is the real thing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import fsspec
import httpx2
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from router.cli.compose import Composition
from router.cli.settings import load_settings, places
from router.cli.summary import how_to_add, lines_to_paste, print_summary
from router.client import AsyncClient
from router.config import Settings
from router.engine.fake import FakeEngine
from router.errors import ConfigError, NotFound
from router.extensions.mirrors import Mirrors, MirrorSettings
from router.plugins.tables import read_tables
from router.registry.format.artifact import digest_of_folder
from tests.cli.tiny import MODULES, write_adapter
from tests.sources.sources import ENTRIES

URL = "memory://bucket/adapters"
MANIFEST = '[adapter]\nname = "medical"\nversion = "1.2.0"\n'


@pytest.fixture
def upload(own_folder, monkeypatch) -> Callable[..., None]:
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = ["", "/bucket", "/bucket/adapters"]

    def upload(name: str, b: float = 0.5) -> None:
        folder = write_adapter(own_folder / f"{name}-{b}", b=b, manifest=MANIFEST.replace("medical", name))
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "adapter.toml"):
            files.pipe_file(f"/bucket/adapters/{name}/{path.name}", path.read_bytes())

    return upload


@pytest.fixture
def away(monkeypatch) -> Callable[[bool], None]:
    """Whether the store does not answer."""
    real, now = MemoryFileSystem.ls, [False]

    def ls(self, path, detail=True, **more):
        if now[0]:
            raise ConnectionError("reset")
        return real(self, path, detail=detail, **more)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    return lambda said: now.__setitem__(0, said)


OWN = MirrorSettings(seconds=0.02)


def settings(wait_seconds: float = 300.0, **more) -> Settings:
    tables = read_tables(Path(), {}, {"mirrors.seconds": 0.02, "mirrors.wait_seconds": wait_seconds})
    return Settings(
        listen="127.0.0.1:0", metrics_listen="127.0.0.1:0", adapters_dir=(URL,), plugins_dir=(), gate="off",
        load_plugins="", experiments="", drain_seconds=2, lame_duck_seconds=0.01, **more,
    ).with_tables(tables)  # fmt: skip


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Composition]:
    engine = FakeEngine()
    engine._info = dataclasses.replace(engine._info, sites=MODULES, vocab_size=32)
    composition = Composition(settings, engine)
    ready = asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield composition
    finally:
        composition.app.request_stop()
        await task


async def until(composition: Composition, wanted: dict[str, str]) -> None:
    """The adapters and their states."""
    for _ in range(400):
        now = {info.ref.name: info.state.value for info in composition.registry.list()}
        if now == wanted:
            return
        await asyncio.sleep(0.02)
    pytest.fail(f"{now} are there, not {wanted}")


async def degraded(composition: Composition) -> list[str]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        page = await client.get(f"http://{composition.app.metrics_address}/readyz")
    assert page.status_code == 200, page.text
    return list(json.loads(page.text)["degraded"])


async def metrics(composition: Composition) -> str:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return (await client.get(f"http://{composition.app.metrics_address}/metrics")).text


async def first_flaw(composition: Composition) -> str:
    for _ in range(400):
        if found := await degraded(composition):
            return found[0]
        await asyncio.sleep(0.02)
    pytest.fail("the output never shows it")


@pytest.mark.slow
async def test_adapters_come_and_go_and_answer(upload, away, capsys, impatient):
    upload("medical")
    async with serving(settings()) as made, AsyncClient(made.app.address, timeout=10) as client:
        answer = await client.generate("hello", adapter="medical", max_tokens=2)
        assert str(answer.decision.adapter) == "medical@1.2.0", "a start waits for what is there"
        assert await degraded(made) == []
        upload("legal")
        await until(made, {"medical": "ready", "legal": "ready"})
        away(True)
        said = await first_flaw(made)
        assert said.startswith(f"adapters of {URL}/ do not follow it since ")
        lines = (await metrics(made)).splitlines()
        assert f'lora_router_mirror_adapters{{store="{URL}/"}} 2.0' in lines
        (behind,) = [line for line in lines if line.startswith("lora_router_mirror_behind_seconds{")]
        assert float(behind.split()[1]) > 0
        assert (await client.generate("hello", adapter="legal", max_tokens=2)).decision.adapter
        away(False)
        fsspec.filesystem("memory").rm("/bucket/adapters/legal", recursive=True)
        await until(made, {"medical": "ready"})
        print_summary(made.app, made.plugins.status())
        assert f"adapters 1 in {URL}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
async def test_a_start_while_the_store_is_away_serves_what_came_before(upload, away):
    upload("medical")
    async with serving(settings()):
        pass
    away(True)
    async with asyncio.timeout(120), serving(settings()) as made:  # mirrors.wait_seconds are 300
        await until(made, {"medical": "ready"})
        assert "reset" in (await degraded(made))[0]


@pytest.mark.slow
async def test_only_what_is_listed_is_served(upload, own_folder, impatient):
    upload("medical"), upload("legal", b=0.25)
    lock = own_folder / "adapters.lock"
    lock.write_text(f"sha256:{digest_of_folder(own_folder / 'medical-0.5')}\n")
    async with serving(settings(adapters_lock=str(lock))) as made:
        await until(made, {"medical": "ready", "legal": "quarantined"})


async def test_a_start_waits_for_no_store_that_is_silent_where_something_is_here(upload, monkeypatch):
    upload("medical")
    first = Mirrors.of(settings(), OWN, ENTRIES)
    await first.opened(), await first.whole()
    first.close()
    go_on = threading.Event()
    monkeypatch.setattr(MemoryFileSystem, "ls", lambda *_, **__: go_on.wait(120) and [])
    monkeypatch.setattr("router.extensions.mirrors.OPEN_SECONDS", 0.1)
    second = Mirrors.of(settings(), OWN, ENTRIES)
    async with asyncio.timeout(60):
        await second.opened(), await second.whole()
    go_on.set()
    second.close()


@pytest.mark.slow
async def test_a_first_start_while_the_store_is_away_waits_as_long_as_was_said(upload, away):
    away(True)
    began = time.monotonic()
    async with serving(settings(wait_seconds=0.3)) as made:
        assert time.monotonic() - began >= 0.3
        assert "reset" in (await degraded(made))[0]
        upload("medical"), away(False)
        await until(made, {"medical": "ready"})
        for _ in range(100):
            if (found := await degraded(made)) == []:
                break
            await asyncio.sleep(0.05)
        assert found == []


async def test_a_store_that_is_not_there_ends_the_start(own_folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    with pytest.raises(NotFound, match="none/' not found: nothing is there, or you may not see it"):
        async with serving(settings().model_copy(update={"adapters_dir": (f"file://{own_folder}/none",)})):
            pytest.fail("it serves")


def test_a_driver_that_is_not_installed_ends_it_before_anything_is_loaded(own_folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        ConfigError, match=r"not installed: pip install -e '\.\[s3\]' in the checkout.* writes there$"
    ):
        Mirrors.of(Settings(adapters_dir=("s3://bucket/adapters",)), OWN, ENTRIES)


def test_a_start_on_a_terminal_shows_how_far_it_is(upload, monkeypatch):
    upload("medical")
    seen = []

    @contextmanager
    def fetching():
        seen.append("bar")
        yield lambda source, done, total: seen.append((source, done, total))
        seen.append("no bar")

    monkeypatch.setattr("router.cli.output.is_plain", lambda stream: False)
    monkeypatch.setattr("router.cli.output.fetching", fetching)
    made = Mirrors.of(settings(), OWN, ENTRIES)
    assert seen == [], "a start that fails leaves no bar"
    asyncio.run(made.opened()), asyncio.run(made.whole())
    made._show(f"{URL}/", 1, 2)
    made.close()
    assert (seen[0], seen[-1]) == ("bar", "no bar")
    sizes = {total for source, _, total in seen[1:-1] if source == f"{URL}/"}
    (size,) = sizes
    assert (f"{URL}/", size, size) in seen


def test_folders_and_stores_side_by_side(own_folder, monkeypatch):
    (own_folder / "one").mkdir()
    monkeypatch.setenv("LORA_ROUTER_ADAPTERS_DIR", "one:s3://bucket/a:gs://bucket/b")
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    found = load_settings()
    assert found.adapters_dir == (Path("one"), "s3://bucket/a", "gs://bucket/b")
    assert places(found) == found.adapters_dir
    one, a, b = found.adapter_folders
    assert one == Path("one")
    assert a != b
    assert a.parent.parent == b.parent.parent == own_folder / "state/lora-router/mirrors"
    assert load_settings({"adapters_dir": ["s3://bucket/a/"]}).adapter_folders == (a,), "the same store"
    moved = load_settings({"adapters_dir": ["s3://bucket/a"], "mirror_dir": "/srv/m"}).adapter_folders
    assert moved == (Path("/srv/m") / a.parent.name / "adapters",)


def test_a_folder_that_is_not_there_beside_a_store(own_folder):
    with pytest.raises(ConfigError, match="none is no folder"):
        places(load_settings({"adapters_dir": ["none", "s3://bucket/a"]}))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (("s3://bucket/a",), "aws s3 cp --recursive my-adapter s3://bucket/a/my-adapter/"),
        (("gs://bucket/a/",), "gcloud storage cp --recursive my-adapter gs://bucket/a/my-adapter/"),
        (("file:///srv/a b",), "cp -r my-adapter '/srv/a b/my-adapter/'"),
        (("sftp://host/a b",), "# upload my-adapter to 'sftp://host/a b/my-adapter/'"),
        ((Path("mine"), "s3://bucket/a"), "cp -r my-adapter mine/"),
        ((), "mkdir adapters && cp -r my-adapter adapters/  # and start again"),
    ],
)
def test_how_to_add(said, line):
    made = Settings(adapters_dir=said)
    assert how_to_add(made) == line
    assert line in lines_to_paste("127.0.0.1:50051", made, "Hello")
