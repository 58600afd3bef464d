"""What a client may not know of is not there, in the same words as what nobody has."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from router.access.clients import parse_clients
from router.errors import ConfigError
from router.ports import Assignment
from router.server.pipeline import Candidates, Resting
from router.types import EVERYTHING, AdapterRef, Decision, Reason, Visible
from router.v1 import adapters_pb2 as pb
from router.v1 import inference_pb2
from tests.fakes import FakeRegistry, adapter
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure, stream


@pytest.mark.parametrize(
    ("globs", "seen", "hidden"),
    [
        ((), (), ("medical",)),
        (("*",), ("medical", "x"), ()),
        (("medical", "legal-*"), ("medical", "legal-eu"), ("legal", "medical-2", "xmedical", "Medical")),
    ],
)
def test_globs(globs: tuple[str, ...], seen: tuple[str, ...], hidden: tuple[str, ...]) -> None:
    visible = Visible(globs)
    assert [name for name in seen if name not in visible] == []
    assert [name for name in hidden if name in visible] == []
    assert visible.everything == ("*" in globs)


@pytest.mark.parametrize("odd", ["[a-z]", "a?b", "A", "", "adapters/x", "x" * 64])
def test_odd_globs_are_refused(odd: str) -> None:
    with pytest.raises(ConfigError, match="adapters"):
        parse_clients(f'[[client]]\nid = "a"\ncert = "x"\nadapters = ["{odd}"]')


@pytest.fixture
async def tenant(start_server: Start, connect: Connect, tmp_path: Path) -> SimpleNamespace:
    """Stubs of a client that knows medical; legal and legal-eu are somebody else's."""
    from router.engine.fake import FakeEngine

    engine = FakeEngine()
    registry = FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0"), adapter("legal-eu")])
    clients = write_clients(tmp_path, ("medical",), all=("infer", "observe", "admin"))
    server = await start_server(engine=engine, registry=registry, clients=clients.path)
    return SimpleNamespace(
        stubs=connect(server), registry=registry, clients=clients, metadata=bearer(clients.all), server=server
    )


async def told(call: Awaitable[Any], name: str) -> tuple[Any, ...]:
    """All that a refusal says, with the name that was asked for taken out."""
    error = await failure(call)
    found = details(error)
    info = found["ErrorInfo"]
    metadata = {
        key: value for key, value in info.metadata.items() if key not in ("request_id", "response_id")
    }
    text = repr((error.details(), info.reason, metadata, found.get("ResourceInfo")))
    return error.code().name, text.replace(name, "NAME")


CALLS = [
    lambda s, name, m: s.adapters.GetAdapter(pb.GetAdapterRequest(name=f"adapters/{name}"), metadata=m),
    lambda s, name, m: s.adapters.LoadAdapter(pb.LoadAdapterRequest(name=f"adapters/{name}"), metadata=m),
    lambda s, name, m: s.adapters.UnloadAdapter(pb.UnloadAdapterRequest(name=f"adapters/{name}"), metadata=m),
    lambda s, name, m: s.adapters.SetDefaultVersion(
        pb.SetDefaultVersionRequest(name=f"adapters/{name}/versions/2.0.0", force=True), metadata=m
    ),
    lambda s, name, m: s.adapters.ResetDefaultVersion(
        pb.ResetDefaultVersionRequest(name=f"adapters/{name}"), metadata=m
    ),
    lambda s, name, m: s.inference.Generate(ask(routing={"adapter": f"adapters/{name}"}), metadata=m),
    lambda s, name, m: s.inference.StreamGenerate(
        stream(routing={"adapter": f"adapters/{name}/versions/2.0.0"}), metadata=m
    ),
    lambda s, name, m: s.inference.CountTokens(
        inference_pb2.CountTokensRequest(
            input=inference_pb2.Input(text="hi"), routing={"adapter": f"adapters/{name}"}
        ),
        metadata=m,
    ),
]


@pytest.mark.parametrize("call", CALLS, ids=range(len(CALLS)))
async def test_a_name_of_somebody_else_is_a_name_of_nobody(tenant: SimpleNamespace, call: Any) -> None:
    theirs = await told(call(tenant.stubs, "legal", tenant.metadata), "legal")
    nobodys = await told(call(tenant.stubs, "ghost", tenant.metadata), "ghost")
    assert theirs == nobodys
    assert theirs[0] == "NOT_FOUND"


async def test_lists_and_events_leave_it_out(tenant: SimpleNamespace) -> None:
    listed = await tenant.stubs.adapters.ListAdapters(pb.ListAdaptersRequest(), metadata=tenant.metadata)
    assert [one.name for one in listed.adapters] == ["adapters/medical/versions/1.0.0"]
    watch = tenant.stubs.adapters.WatchAdapters(pb.WatchAdaptersRequest(), metadata=tenant.metadata)
    events = aiter(watch)
    assert "medical" in (await anext(events)).adapter.name
    tenant.registry.put(adapter("legal", "3.0.0"))
    tenant.registry.put(adapter("medical", "2.0.0"))
    assert "medical/versions/2.0.0" in (await anext(events)).adapter.name
    watch.cancel()


async def test_no_request_is_routed_to_it_and_no_vote_tells_of_it(tenant: SimpleNamespace) -> None:
    asked = inference_pb2.RouteRequest(input=inference_pb2.Input(text="a legal and medical question"))
    found = (await tenant.stubs.inference.Route(asked, metadata=tenant.metadata)).decision
    assert "medical" in found.adapter
    assert "legal" not in repr(found)
    asked = inference_pb2.RouteRequest(input=inference_pb2.Input(text="a legal question"))
    found = (await tenant.stubs.inference.Route(asked, metadata=tenant.metadata)).decision
    assert (found.adapter, "legal" in repr(found)) == ("", False)


async def test_a_call_ends_when_what_it_may_know_of_changes(tenant: SimpleNamespace) -> None:
    watch = tenant.stubs.adapters.WatchAdapters(pb.WatchAdaptersRequest(), metadata=tenant.metadata)
    await anext(aiter(watch))
    text = tenant.clients.path.read_text()
    tenant.clients.path.write_text(re.sub(r"adapters = .*", 'adapters = ["legal"]', text))
    error = await asyncio.wait_for(failure(watch), 3)
    assert (error.code().name, "RetryInfo" in details(error)) == ("UNAVAILABLE", True)
    listed = await tenant.stubs.adapters.ListAdapters(pb.ListAdaptersRequest(), metadata=tenant.metadata)
    assert [one.version for one in listed.adapters] == ["2.0.0"]


class Arm:
    """An assignment to one version, with control's behind it."""

    versions = (AdapterRef("legal", "2.0.0"), AdapterRef("medical", "1.0.0"))


def test_an_arm_that_a_client_may_not_know_of_is_passed_over(fakes: SimpleNamespace) -> None:
    arm: Assignment = Arm()
    routed, resting = Decision(None, Reason.ABSTAINED), Resting()
    for visible, first in ((EVERYTHING, "legal"), (Visible(("medical",)), "medical")):
        decision = next(iter(Candidates(routed, arm, fakes.registry, resting, visible)))
        assert decision.adapter is not None
        assert decision.adapter.name == first
    assert resting.reason(AdapterRef("legal", "2.0.0")) == ""
