"""AdapterService over the registry, and pages of its list."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from router.engine.fake import FakeEngine
from router.errors import InvalidRequest
from router.plugins import Hooks, PluginHost
from router.server.adapters import NOT_SHOWN, name_and_version, page, place
from router.server.app import ServerApp
from router.types import AdapterRef, AdapterState
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRegistry, adapter
from tests.security.helpers import bearer, write_clients
from tests.server.helpers import Connect, Start, ask, details, failure

MEDICAL = "adapters/medical/versions/1.0.0"


async def test_list_shows_quarantined_ones_with_their_reason(
    stubs: SimpleNamespace, fakes: SimpleNamespace
) -> None:
    bad = replace(adapter("broken"), state=AdapterState.QUARANTINED, error="rank 512 is over 64")
    fakes.registry.put(bad)
    listed = await stubs.adapters.ListAdapters(pb.ListAdaptersRequest())
    assert [a.name.split("/")[1] for a in listed.adapters] == ["broken", "legal", "medical"]
    assert listed.adapters[0].state == pb.Adapter.STATE_QUARANTINED
    assert listed.adapters[0].error == "rank 512 is over 64"
    refused = await failure(
        stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name="adapters/broken/versions/1.0.0"))
    )
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("adapters", ["*", "legal"])
async def test_what_is_wrong_with_a_plugin_is_shown_whole_to_who_may_know_of_every_adapter(
    start_server: Start, connect: Connect, tmp_path: Path, adapters: str
) -> None:
    (folder := tmp_path / "plugins").mkdir()
    (folder / "broken.py").write_text("import no_such_module\n")
    clients = write_clients(tmp_path, [adapters])
    hooks = Hooks(PluginHost([folder], built_in=True))
    at = connect(await start_server(clients=clients.path, hooks=hooks))
    told = await at.adapters.ListPlugins(pb.ListPluginsRequest(), metadata=bearer(clients.observe))
    error = next(plugin.error for plugin in told.plugins if plugin.name == "broken")
    if adapters == "*":
        assert error == "ModuleNotFoundError: No module named 'no_such_module' (broken.py:1)"
    else:
        assert error == NOT_SHOWN
        assert "no_such_module" not in repr(told)
        assert str(tmp_path) not in repr(told)


COUNTING = """
from router import hookimpl
from router.routing import Classifier

class Counting(Classifier):
    name = "counting"

    def classify_batch(self, requests):
        return [None] * len(requests)

@hookimpl
def register_classifiers(register):
    register(Counting())
"""


@pytest.mark.parametrize("adapters", ["*", "medical"])
async def test_notes_tell_how_well_classifiers_know_an_adapter(
    start_server: Start, connect: Connect, tmp_path: Path, adapters: str
) -> None:
    (folder := tmp_path / "plugins").mkdir()
    (folder / "counting.py").write_text(COUNTING)
    clients = write_clients(tmp_path, [adapters])
    host = PluginHost([folder])
    at = connect(await start_server(clients=clients.path, hooks=Hooks(host)))
    (counting,) = host.registrations()
    counting.health.findings = {"medical": "3 of its 4 examples reach it; 1 to legal"}
    who = bearer(clients.observe)
    listed = await at.adapters.ListAdapters(pb.ListAdaptersRequest(), metadata=who)
    got = await at.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/medical"), metadata=who)
    found = {"3 of its 4 examples reach it; 1 to legal"} if adapters == "*" else set()
    assert {note for one in listed.adapters for note in one.notes if "examples" in note} == found
    assert {note for note in got.adapter.notes if "examples" in note} == found


async def test_list_filters(stubs: SimpleNamespace) -> None:
    listed = await stubs.adapters.ListAdapters(pb.ListAdaptersRequest(domain="legal"))
    assert [a.version for a in listed.adapters] == ["2.0.0"]


async def test_get_load_unload(stubs: SimpleNamespace) -> None:
    got = (await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/medical"))).adapter
    assert (got.name, got.state, got.default) == (MEDICAL, pb.Adapter.STATE_DISCOVERED, True)
    loaded = (await stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name=MEDICAL, pinned=True))).adapter
    assert (loaded.state, loaded.pinned) == (pb.Adapter.STATE_READY, True)
    kept = (await stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name=MEDICAL))).adapter
    assert kept.pinned
    gone = await stubs.adapters.UnloadAdapter(pb.UnloadAdapterRequest(name=MEDICAL))
    assert (gone.adapter.state, gone.freed_bytes) == (pb.Adapter.STATE_OFFLOADED, 4096)


async def test_get_tells_from_which_tokens_on_it_acts(stubs: SimpleNamespace, fakes: SimpleNamespace) -> None:
    fakes.registry.put(replace(fakes.registry.get("medical"), invocation_tokens=(1, 520)))
    got = (await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/medical"))).adapter
    assert list(got.invocation_tokens) == [1, 520]


async def test_default_version_and_its_etag(stubs: SimpleNamespace, fakes: SimpleNamespace) -> None:
    fakes.registry.put(adapter("medical", "1.1.0"))
    new = "adapters/medical/versions/1.1.0"
    seen = (await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name=new))).adapter
    await stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name=new))
    stale = await failure(
        stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=new, etag=seen.etag))
    )
    assert stale.code() is grpc.StatusCode.ABORTED
    assert details(stale)["ErrorInfo"].reason == "STALE_ETAG"
    changed = await stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=new))
    assert (changed.adapter.default, changed.previous) == (True, MEDICAL)
    assert (await stubs.inference.Generate(ask("medical"))).decision.adapter == new


async def test_the_gate_is_told_and_can_be_overruled(stubs: SimpleNamespace, fakes: SimpleNamespace) -> None:
    closed = "not routed to by itself: no report.json"
    fakes.registry.put(adapter("medical", "1.1.0", gate=closed, gate_advice="run it"))
    name = "adapters/medical/versions/1.1.0"
    seen = (await stubs.adapters.GetAdapter(pb.GetAdapterRequest(name=name))).adapter
    assert (seen.routable, seen.gate, seen.gate_advice) == (False, closed, "run it")
    assert not seen.HasField("override")
    refused = await failure(stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=name)))
    assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION
    info = details(refused)["ErrorInfo"]
    assert (info.reason, info.metadata["finding"]) == ("GATE_NOT_PASSED", closed)
    assert details(refused)["PreconditionFailure"].violations[0].subject == name
    forced = pb.SetDefaultVersionRequest(name=name, force=True, reason="ticket 7")
    now = (await stubs.adapters.SetDefaultVersion(forced)).adapter
    assert (now.routable, now.default, now.gate) == (True, True, "")
    assert (now.override.by, now.override.reason, now.override.finding) == ("127.0.0.1", "ticket 7", closed)
    assert now.override.time.seconds == pytest.approx(time.time(), abs=5)
    back = await stubs.adapters.ResetDefaultVersion(pb.ResetDefaultVersionRequest(name="adapters/medical"))
    assert (back.adapter.name, back.previous) == (MEDICAL, name)


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"reason": "because"}, "reason"), ({"reason": "x" * 501, "force": True}, "reason")],
)
async def test_a_reason_goes_with_force_and_is_short(
    stubs: SimpleNamespace, fields: dict[str, Any], field: str
) -> None:
    call = stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name=MEDICAL, **fields))
    refused = await failure(call)
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [v.field for v in details(refused)["BadRequest"].field_violations] == [field]


@pytest.mark.parametrize(("name", "code"), [(MEDICAL, "INVALID_ARGUMENT"), ("adapters/nope", "NOT_FOUND")])
async def test_only_a_known_name_can_be_reset(stubs: SimpleNamespace, name: str, code: str) -> None:
    call = stubs.adapters.ResetDefaultVersion(pb.ResetDefaultVersionRequest(name=name))
    assert (await failure(call)).code() is grpc.StatusCode[code]


@pytest.mark.parametrize("name", ["", "medical", "adapters/", "adapters/../../etc", "adapters/a/versions/"])
async def test_bad_names(stubs: SimpleNamespace, name: str) -> None:
    refused = await failure(stubs.adapters.GetAdapter(pb.GetAdapterRequest(name=name)))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(refused)["BadRequest"].field_violations[0].field == "name"
    refused = await failure(stubs.adapters.SetDefaultVersion(pb.SetDefaultVersionRequest(name="adapters/a")))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_adapters_are_not_found(stubs: SimpleNamespace) -> None:
    for call in (
        stubs.adapters.GetAdapter(pb.GetAdapterRequest(name="adapters/nope")),
        stubs.inference.Generate(ask(routing={"adapter": "adapters/nope"})),
    ):
        refused = await failure(call)
        assert refused.code() is grpc.StatusCode.NOT_FOUND
        assert details(refused)["ErrorInfo"].reason == "ADAPTER_NOT_FOUND"
        assert details(refused)["ResourceInfo"].resource_name == "adapters/nope"


async def test_watch_sends_the_set_then_changes(stubs: SimpleNamespace, fakes: SimpleNamespace) -> None:
    events = aiter(stubs.adapters.WatchAdapters(pb.WatchAdaptersRequest()))
    first = [await anext(events) for _ in range(2)]
    assert {e.kind for e in first} == {pb.WatchAdaptersResponse.KIND_ADDED}
    await stubs.inference.Generate(ask("medical"))
    states = [(await anext(events)).adapter.state for _ in range(2)]
    assert states == [pb.Adapter.STATE_LOADING, pb.Adapter.STATE_READY]
    fakes.registry.remove(AdapterRef("legal", "2.0.0"))
    last = await anext(events)
    assert (last.kind, last.adapter.etag) == (pb.WatchAdaptersResponse.KIND_REMOVED, "")


async def test_a_watch_ends_with_the_server_without_holding_it_up(
    server: ServerApp, stubs: SimpleNamespace
) -> None:
    events = aiter(stubs.adapters.WatchAdapters(pb.WatchAdaptersRequest()))
    await anext(events)
    ended = asyncio.ensure_future(failure(events))
    await asyncio.wait_for(server.stop(), 0.8)
    assert details(await ended)["ErrorInfo"].reason == "DRAINING"


INFOS = [adapter(f"a{i:02}") for i in range(25)]


@pytest.fixture
async def many(start_server: Start, connect: Connect) -> SimpleNamespace:
    """Stubs to a server with 25 adapters."""
    engine = FakeEngine()
    return connect(await start_server(engine=engine, registry=FakeRegistry(engine, INFOS)))


async def test_25_by_10(many: SimpleNamespace) -> None:
    sizes, names, token = [], [], ""
    while not sizes or token:
        reply = await many.adapters.ListAdapters(pb.ListAdaptersRequest(page_size=10, page_token=token))
        sizes.append(len(reply.adapters))
        names += [a.name for a in reply.adapters]
        token = reply.next_page_token
    assert sizes == [10, 10, 5]
    assert names == [info.ref.resource for info in INFOS]


@pytest.mark.parametrize("size", [0, 25, 2**31 - 1])
async def test_all_on_one_page(many: SimpleNamespace, size: int) -> None:
    reply = await many.adapters.ListAdapters(pb.ListAdaptersRequest(page_size=size))
    assert (len(reply.adapters), reply.next_page_token) == (25, "")


@pytest.mark.parametrize(
    ("request_fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"page_token": "nonsense"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"page_token": base64.urlsafe_b64encode(b"[1, 2, 3]").decode()}, "page_token"),
        ({"page_token": "x" * 2000}, "page_token"),
    ],
)
async def test_bad_pages(many: SimpleNamespace, request_fields: dict[str, object], field: str) -> None:
    refused = await failure(many.adapters.ListAdapters(pb.ListAdaptersRequest(**request_fields)))
    assert [v.field for v in details(refused)["BadRequest"].field_violations] == [field]


def test_a_token_belongs_to_its_filters() -> None:
    _, token = page(INFOS, name_and_version, 10, "", ("medical", ""))
    with pytest.raises(InvalidRequest, match="page_token"):
        page(INFOS, name_and_version, 10, token, ("legal", ""))


def test_what_goes_between_pages_shifts_nothing() -> None:
    shown, token = page(INFOS, name_and_version, 10, "", ())
    left = [info for info in INFOS if info.ref != shown[-1].ref]
    assert page(left, name_and_version, 10, token, ())[0] == INFOS[10:20]


def test_size_is_capped() -> None:
    many = [adapter(f"a{i:04}") for i in range(600)]
    assert len(page(many, name_and_version, 0, "", ())[0]) == 50
    assert len(page(many, name_and_version, 9999, "", ())[0]) == 500


def test_versions_count_as_numbers() -> None:
    versions = ["1.10.0", "1.9.0", "1.9.0-rc1", "2"]
    ordered = sorted((("a", version) for version in versions), key=place)
    assert [version for _, version in ordered] == ["1.9.0", "1.9.0-rc1", "1.10.0", "2"]
