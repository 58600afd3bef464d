"""Which version answers for a name, and setting it."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from router.errors import AdapterNotFound, AdapterRejected, NotSaved, StaleEtag
from router.registry import state
from router.registry.disk.places import Found, Place, Stamp
from router.registry.format.artifact import Inspection
from router.registry.format.manifest import Manifest
from router.registry.gate import GateVerdict, Standing
from router.registry.index import candidate, default_version
from router.registry.options import RegistryOptions
from router.registry.record import Live, Record
from router.registry.registry import Registry
from router.registry.residency import Resident
from router.types import AdapterRef
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRouter
from tests.registry.conftest import StartRegistry
from tests.registry.life import StubEngine, drop, eventually, ref, states
from tests.server.helpers import Connect, Start, details, failure

PASSED, PENDING, FAILED = Standing.PASSED, Standing.PENDING, Standing.FAILED
INSPECTION = Inspection("m", "0", Manifest("m"), 1, (), 1, (), "")
FOUND = Found(Place(Path("/x"), "x"), Path("/"), Stamp())


def versions(text: str) -> list[Record]:
    """`1.0 1.1+ 1.2!`: + is proven, ! is quarantined; * passed the gate, ? may yet pass."""
    records = []
    for word in text.split():
        problem = "refused" if "!" in word else ""
        record = Record(AdapterRef("m", word.rstrip("+!*?")), FOUND, None, lambda _: None, problem=problem)
        if "+" in word:
            prove(record)
        standing = {"*": PASSED, "?": PENDING}.get(word[-1], FAILED)
        record.ruled(GateVerdict(standing, open=standing is PASSED))
        records.append(record)
    return records


def prove(record: Record) -> None:
    """It was loaded, answered its probes, and left memory again."""
    task: Any = object()
    record.load_began(task)
    record.load_succeeded(Live(Resident("digest", 1), INSPECTION, record.found.stamp), proven=True)
    record.load_ended()
    record.evicted()


@pytest.mark.parametrize(
    ("there", "chosen", "current", "expected", "rising"),
    [
        ("", "", "", "", None),
        ("1.0 1.10 1.9", "", "", "1.10", None),  # at the start the highest
        ("1.0 1.10!", "", "", "1.0", None),  # that is not quarantined
        ("1.0! 1.1!", "", "", "", None),
        ("1.0+ 1.1", "", "1.0", "1.0", "1.1"),  # a new one has to prove itself
        ("1.0+ 1.1 1.2 1.3!", "", "1.0", "1.0", "1.2"),
        ("1.0+ 1.1+ 1.2", "", "1.0", "1.1", "1.2"),
        ("1.0 1.1+", "", "1.0", "1.1", None),
        ("0.9+ 1.0", "", "1.0", "1.0", None),  # never downwards by itself
        ("0.9+ 0.8+ 1.1", "", "1.0", "0.9", "1.1"),  # the present one is gone: a proven one
        ("0.8 0.9 1.0!", "", "1.0", "0.9", None),
        ("1.0 2.0+", "1.0", "2.0", "1.0", None),  # chosen
        ("1.0! 2.0+", "1.0", "1.0", "1.0", None),  # also when it is refused: 2.0 may be what was rolled back
        ("2.0+", "1.0", "1.0", "2.0", None),  # but not when it is gone
        ("1.0* 1.1", "", "", "1.0", None),  # with the gate: at the start the highest that passed
        ("1.0 1.1? 1.2", "", "", "1.1", "1.2"),  # or may yet pass
        ("1.0+* 1.1*", "", "1.0", "1.0", "1.1"),
        ("1.0+* 1.1+* 1.2+", "", "1.0", "1.1", None),  # nothing that failed takes over
        ("1.0* 1.1+", "", "1.1", "1.1", "1.0"),  # but gives way, also to a lower one
        ("1.0+* 1.1+", "", "1.1", "1.0", None),
        ("1.0+* 1.1+*", "1.0", "1.1", "1.0", None),
        ("1.0 1.1+*", "1.0", "1.1", "1.0", None),  # what was chosen is
    ],
)
def test_the_default_version(
    there: str, chosen: str, current: str, expected: str, rising: str | None
) -> None:
    records = versions(there)
    default = default_version(records, chosen, current)
    assert default == expected
    if default and not chosen:
        found = candidate(records, default)
        assert (found and found.ref.version) == rising


@pytest.mark.slow
async def test_a_chosen_version_that_breaks_is_not_replaced_in_silence(
    root: Path, engine: StubEngine, start_registry: StartRegistry
) -> None:
    old = drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")
    registry = await start_registry(preload=False)
    await registry.set_default(AdapterRef("m", "1.0"))
    weights = (old / "adapter_model.safetensors").read_bytes()
    (old / "adapter_model.safetensors").write_bytes(weights[:50])
    await eventually(lambda: states(registry)["m@1.0"] == "quarantined")
    with pytest.raises(AdapterRejected, match=r"m@1\.0 is quarantined"):
        registry.resolve("m")
    assert registry.profiles() == ()
    await registry.set_default(AdapterRef("m", "2.0"))
    assert [p.version for p in registry.profiles()] == ["2.0"]


def two(root: Path) -> None:
    drop(root, "m", "1.0", 1, folder="m/1.0")
    drop(root, "m", "2.0", 2, folder="m/2.0")


def full(*_: object) -> None:
    raise OSError(28, "No space left on device", "/srv/state/defaults.json")


def kept(tmp_path: Path) -> dict[str, Any]:
    (file,) = tmp_path.glob("state/registry/*/defaults.json")
    found: dict[str, Any] = json.loads(file.read_text())["defaults"]
    return found


async def test_what_cannot_be_saved_changes_nothing(
    root: Path, tmp_path: Path, start_registry: StartRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(root)
    registry = await start_registry()
    with monkeypatch.context() as patched:
        patched.setattr(state, "write_atomically", full)
        with pytest.raises(NotSaved):
            await registry.set_default(ref("m", "1.0"))
        assert registry.resolve("m").ref == ref("m", "2.0")
    await registry.set_default(ref("m", "1.0"))
    assert kept(tmp_path) == {"m": "1.0"}
    with monkeypatch.context() as patched:
        patched.setattr(state, "write_atomically", full)
        with pytest.raises(NotSaved):
            await registry.reset_default("m")
        assert registry.resolve("m").ref == ref("m", "1.0")
    assert kept(tmp_path) == {"m": "1.0"}
    assert (await registry.reset_default("m"))[0].ref == ref("m", "2.0")
    assert kept(tmp_path) == {}
    with pytest.raises(AdapterNotFound):
        await registry.reset_default("n")


class Slow:
    """A disk that takes its time: `write_atomically` until `go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.threads = threading.Event(), threading.Event(), set[int]()
        write = state.write_atomically

        def slow(path: Path, data: bytes) -> None:
            self.threads.add(threading.get_ident())
            self.begun.set()
            assert self.go.wait(10)
            write(path, data)

        monkeypatch.setattr(state, "write_atomically", slow)


async def test_the_loop_goes_on_and_one_etag_is_good_for_one_change(
    root: Path, tmp_path: Path, start_registry: StartRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(root)
    registry = await start_registry()
    disk, etag = Slow(monkeypatch), registry.etag(ref("m", "1.0"))
    calls = [asyncio.ensure_future(registry.set_default(ref("m", "1.0"), etag)) for _ in range(2)]
    await asyncio.to_thread(disk.begun.wait, 5)
    assert registry.resolve("m").ref == ref("m", "2.0")  # the loop runs, and nothing holds yet
    disk.go.set()
    (info, previous), stale = await asyncio.gather(*calls, return_exceptions=True)
    assert (info.ref, info.default, previous) == (ref("m", "1.0"), True, ref("m", "2.0"))
    assert isinstance(stale, StaleEtag)
    assert threading.get_ident() not in disk.threads


async def test_who_leaves_does_not_leave_half_a_change(
    root: Path, tmp_path: Path, start_registry: StartRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(root)
    registry = await start_registry()
    disk = Slow(monkeypatch)
    call = asyncio.ensure_future(registry.set_default(ref("m", "1.0")))
    await asyncio.to_thread(disk.begun.wait, 5)
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    disk.go.set()
    await registry.close()  # waits for it
    assert registry.resolve("m").ref == ref("m", "1.0")
    assert kept(tmp_path) == {"m": "1.0"}


@pytest.mark.slow
async def test_callers_are_told_that_it_was_not_saved_and_not_where(
    tmp_path: Path, start_server: Start, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    two(root := tmp_path / "adapters")
    (tmp_path / "file").write_text("")  # a folder that nobody can write to, root neither
    registry = Registry(
        StubEngine(), [root], RegistryOptions(state_dir=tmp_path / "file/x", preload=False, gate="off")
    )
    await registry.start()
    await eventually(lambda: len(registry.list()) == 2)
    app = await start_server(registry=registry, router=FakeRouter(registry))
    stubs = connect(app)
    name = "adapters/m/versions/1.0"
    seen = await failure(stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=name)))
    assert (seen.code().name, details(seen)["ErrorInfo"].reason) == ("UNAVAILABLE", "NOT_SAVED")
    assert seen.details() == NotSaved.told
    assert str(tmp_path) not in repr((seen, details(seen)))
    assert str(tmp_path) in caplog.text
    got = await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/m"))
    assert got.adapter.version == "2.0"
    await app.stop()
    await registry.close()
