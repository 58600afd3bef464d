"""What the server keeps of administration and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from router.access.audit import verify
from router.v1 import adapters_pb2 as pb
from tests.audited import entries
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, failure

LOAD = "router.v1.AdapterService/LoadAdapter"


@pytest.fixture
async def kept(start_server: Start, connect: Connect, tmp_path: Path) -> SimpleNamespace:
    """A server with clients and an audit file."""
    clients, file = write_clients(tmp_path), tmp_path / "audit.jsonl"
    server = await start_server(clients=clients.path, audit=file)
    return SimpleNamespace(server=server, stubs=connect(server), clients=clients, file=file)


async def test_administration_is_kept_before_the_answer_and_nothing_else_is(kept: SimpleNamespace) -> None:
    admin = bearer(kept.clients.admin)
    load = pb.LoadAdapterRequest(name="adapters/medical")
    await kept.stubs.adapters.LoadAdapter(load, metadata=(*admin, ("x-request-id", "mine-1")))
    (line,) = entries(kept.file)
    assert (line["client"], line["method"], line["resource"]) == ("admin", LOAD, "adapters/medical")
    assert (line["code"], line["request_id"], line["peer"]) == ("OK", "mine-1", "127.0.0.1")
    assert (await kept.stubs.inference.Generate(ask(), metadata=bearer(kept.clients.infer))).text
    await failure(kept.stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name="adapters/x"), metadata=admin))
    lines = list(entries(kept.file))
    assert [(one["code"], one.get("reason")) for one in lines] == [
        ("OK", None),
        ("NOT_FOUND", "ADAPTER_NOT_FOUND"),
    ]


async def test_every_refusal_is_kept_without_the_secret(kept: SimpleNamespace) -> None:
    wrong = kept.clients.infer[:-1] + "_"
    await failure(kept.stubs.inference.Generate(ask()))
    await failure(kept.stubs.inference.Generate(ask(), metadata=bearer(wrong)))
    load = pb.LoadAdapterRequest(name="adapters/medical")
    await failure(kept.stubs.adapters.LoadAdapter(load, metadata=bearer(kept.clients.observe)))
    await kept.server.stop()
    found = list(entries(kept.file))
    assert [one["reason"] for one in found] == ["TOKEN_MISSING", "TOKEN_INVALID", "ROLE_MISSING"]
    assert [one.get("client") for one in found] == [None, None, "observe"]
    assert found[2]["method"] == LOAD
    assert "resource" not in found[2]  # its body was not read
    assert kept.clients.infer.removeprefix("lrk_infer_")[:20] not in kept.file.read_text()
    assert verify(kept.file).problems == ()
