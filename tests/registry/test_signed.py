"""A registry that takes signed or listed adapters only: what waits, and what serves on."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import AdapterRejected
from router.registry import folders, reconcile
from router.registry.format.artifact import digest_of_folder
from router.registry.format.trust import Lock, Trust
from router.types import AdapterState
from tests.registry.life import drop, eventually, is_ready, ref
from tests.registry.signing import Signer

KEY = Signer.make()
TRUST = Trust([KEY.public])


def signed(folder: Path) -> None:
    KEY.sign(folder)


async def test_quarantined_until_it_is_signed(root, start_registry):
    folder = drop(root, "m", "1.0.0")
    registry = await start_registry(trust=TRUST)
    await eventually(lambda: bool(registry.list()))
    (info,) = registry.list()
    assert (info.state, str(info.ref)) == (AdapterState.QUARANTINED, str(ref("m", "0"))), (
        "nobody read who it is"
    )
    assert "adapter.sig: is missing" in info.error
    with pytest.raises(AdapterRejected, match="is quarantined"):
        async with registry.lease(info.ref):
            pass
    signed(folder)
    await eventually(is_ready(registry, "m", "1.0.0"))


async def test_a_version_serves_on_when_its_folder_is_overwritten(root, start_registry):
    signed(drop(root, "m", value=1))
    registry = await start_registry(trust=TRUST)
    async with registry.lease(ref("m")) as before:
        pass
    drop(root, "m", value=2)
    await eventually(lambda: "changed after it was signed" in registry.get("m").error)
    async with registry.lease(ref("m")) as lease:
        assert lease.digest == before.digest
    signed(root / "m")
    await eventually(lambda: not registry.get("m").error and registry.get("m").digest != before.digest)


async def test_an_unsigned_folder_cannot_take_a_signed_ones_place(root, start_registry):
    drop(root, "m", "1.0.0", value=2, folder="a-first")
    folder = drop(root, "m", "1.0.0", value=1, folder="b-second")
    signed(folder)
    registry = await start_registry(trust=TRUST)
    await eventually(lambda: len(registry.list()) == 2)
    await eventually(is_ready(registry, "m", "1.0.0"))
    assert registry.get("m").digest == digest_of_folder(folder)
    assert registry.get("a-first").state is AdapterState.QUARANTINED


async def test_a_report_is_read_only_beside_what_may_be_served(root, start_registry, monkeypatch):
    parsed: list[str] = []
    monkeypatch.setattr(folders, "read_report", lambda path: parsed.append(path.name))
    for name in ("good", "unsigned"):
        (drop(root, name) / "report.json").write_text("{}")
    signed(root / "good")
    await start_registry(trust=TRUST, gate="strict")
    await eventually(lambda: bool(parsed))
    assert parsed == ["good"]
    signed(root / "unsigned")
    await eventually(lambda: parsed == ["good", "unsigned"])


async def test_one_that_comes_onto_the_list_is_taken(root, tmp_path, start_registry, monkeypatch):
    monkeypatch.setattr(reconcile, "RETRY_SECONDS", 0.1)
    folder, path = drop(root, "m"), tmp_path / "adapters.lock"
    path.write_text("# none yet\n")
    registry = await start_registry(trust=Trust(lock=Lock(path)))
    await eventually(
        lambda: "is not in adapters.lock" in registry.get("m").error if registry.list() else False
    )
    path.write_text(f"sha256:{digest_of_folder(folder)}  m\n")
    await eventually(is_ready(registry, "m"))
