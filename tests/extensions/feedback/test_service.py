"""Feedback over gRPC: on one's own answers, kept as far as one agreed, listed and deleted by an admin."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from router.access.clients import hash_of, new_token
from router.client import AsyncClient, FeedbackRecorded
from router.engine.fake import FakeEngine
from router.errors import NotSaved, StoreDown
from router.feedback import recorder as recorders
from router.feedback.model import Feedback
from router.feedback.recorder import FeedbackRecorder
from router.feedback.store import FeedbackStore
from router.types import Keeping
from router.units import unit_hash
from router.v1 import feedback_pb2 as pb
from router.v1 import feedback_pb2_grpc
from tests.fakes import FakeRegistry, adapter
from tests.security.helpers import bearer
from tests.server.helpers import Connect, Start, ask, details, failure, messages, stream, until

GOOD, BAD, CORRECTED = pb.FEEDBACK_VERDICT_GOOD, pb.FEEDBACK_VERDICT_BAD, pb.FEEDBACK_VERDICT_CORRECTED
Open = Callable[..., Awaitable[SimpleNamespace]]
CLIENTS = """
[[tenant]]
id = "acme"
feedback = "texts"

[[client]]
id = "anna"
tenant = "acme"
roles = ["infer"]
adapters = ["medical"]
token_sha256 = ["{anna}"]
outcomes_per_day = 2

[[client]]
id = "bert"
roles = ["infer"]
adapters = ["*"]
token_sha256 = ["{bert}"]

[[client]]
id = "cleo"
tenant = "acme"
roles = ["admin"]
adapters = ["medical"]
token_sha256 = ["{cleo}"]

[[client]]
id = "dora"
roles = ["admin"]
adapters = ["*"]
token_sha256 = ["{dora}"]
"""


@pytest.fixture
def open_server(start_server: Start, connect: Connect, tmp_path: Path) -> Open:
    """`await open_server(keeping, **settings)`: stubs of a server that keeps feedback in tmp_path."""

    async def start(keeping: Keeping = "texts", days: int = 90, **settings: Any) -> SimpleNamespace:
        engine = FakeEngine()
        registry = FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0")])
        recorder = FeedbackRecorder(FeedbackStore.in_folder(tmp_path), keeping, days)
        app = await start_server(engine=engine, registry=registry, feedback=recorder, **settings)
        stubs = connect(app)
        service = feedback_pb2_grpc.FeedbackServiceStub(stubs.channel)
        return SimpleNamespace(**vars(stubs) | {"app": app, "recorder": recorder, "feedback": service})

    return start


def on(response_id: str, verdict: Any = GOOD, **fields: Any) -> pb.RecordFeedbackRequest:
    return pb.RecordFeedbackRequest(response_id=response_id, verdict=verdict, **fields)


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("feedback.db*"))


async def listed(at: SimpleNamespace, name: str = "adapters/medical", **more: Any) -> list[pb.Feedback]:
    return list((await at.feedback.ListFeedback(pb.ListFeedbackRequest(adapter=name), **more)).feedback)


async def test_feedback_holds_request_and_answer(open_server: Open) -> None:
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question", routing={"unit": "ann"}))
    events = await messages(at.inference.StreamGenerate(stream("a medical question")))
    streamed = events[0].started.response_id
    first = await at.feedback.RecordFeedback(on(answer.response_id, comment="clear"))
    second = await at.feedback.RecordFeedback(on(streamed, BAD, corrected="that"))
    assert (first.kept, first.replaced) == (second.kept, second.replaced) == (pb.FEEDBACK_KEPT_TEXTS, False)
    one, other = await listed(at)
    assert (one.response_id, one.verdict, one.comment) == (answer.response_id, GOOD, "clear")
    assert (one.adapter, one.digest) == (answer.decision.adapter, answer.decision.digest)
    assert (one.unit_hash, one.tenant) == (unit_hash("ann"), "")
    assert one.input.chat.messages[0].text == "a medical question"
    assert (one.answer, one.HasField("corrected")) == (answer.text, False)
    assert (other.verdict, other.corrected, other.unit_hash) == (CORRECTED, "that", "")
    assert other.answer == "".join(event.delta.text for event in events)
    page = generate_latest(at.app.metrics.registry).decode()
    assert 'lora_router_feedback_total{kept="texts",verdict="good"} 1.0' in page


async def test_who_should_have_answered_is_kept_and_counts_as_bad(open_server: Open) -> None:
    at = await open_server("labels")
    answer = await at.inference.Generate(ask("a medical question"))
    for name in ("base", "adapters/legal"):
        await at.feedback.RecordFeedback(on(answer.response_id, None, should_have_been=name))
    (one,) = await listed(at)  # the latest feedback
    assert (one.verdict, one.should_have_been, one.HasField("input")) == (BAD, "adapters/legal", False)
    ghost = on(answer.response_id, None, should_have_been="adapters/ghost")
    error = await failure(at.feedback.RecordFeedback(ghost))
    assert details(error)["ErrorInfo"].reason == "ADAPTER_NOT_FOUND"
    async with AsyncClient(at.app.address) as client:
        await client.feedback.record(answer.response_id, should_have_been="base", comment="small talk")
        assert [said.should_have_been async for said in client.feedback.list("medical")] == ["base"]


async def test_later_feedback_replaces_earlier(open_server: Open) -> None:
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question"))
    await at.feedback.RecordFeedback(on(answer.response_id))
    at.recorder.answers.recent.forget(lambda tenant, one: True)  # as when the server has started again
    done = await at.feedback.RecordFeedback(on(answer.response_id, CORRECTED, corrected="that"))
    assert done.replaced
    (one,) = await listed(at)
    assert (one.verdict, one.corrected, one.answer) == (CORRECTED, "that", answer.text)


async def test_the_client_for_asyncio(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    at = await open_server()
    monkeypatch.setattr("router.extensions.feedback.service.MAX_PAGE", 1)
    async with AsyncClient(at.app.address) as client:
        answers = [await client.generate(text, adapter="medical", unit="ann") for text in ("one", "two")]
        raw = await client.generate("three", adapter="medical", raw=True)
        assert await client.feedback.record(raw.response_id, "good") == FeedbackRecorded("texts", False)
        for answer in answers:
            await client.feedback.record(answer.response_id, corrected="that", comment="why")
        first, *others = [one async for one in client.feedback.list("medical")]
        assert (first.messages, first.answer) == ((("raw", "three"),), raw.text)
        assert [one.messages for one in others] == [(("user", "one"),), (("user", "two"),)]
        assert {(one.verdict, one.corrected, one.comment) for one in others} == {("corrected", "that", "why")}
        assert (others[0].adapter, others[0].version) == ("medical", "1.0.0")
        assert [one async for one in client.feedback.list("medical", since=others[1].time)] == [others[1]]
        assert await client.feedback.delete(unit="ann") == 2
        with pytest.raises(ValueError, match="verdict must be one of"):
            await client.feedback.record("x", "fine")


async def test_labels_keep_no_text_of_whoever_sends_it(open_server: Open, tmp_path: Path) -> None:
    at = await open_server("labels")
    answer = await at.inference.Generate(ask("a medical question", routing={"unit": "ann"}))
    sent = on(answer.response_id, CORRECTED, corrected="secret", comment="secret", prompt="secret")
    assert (await at.feedback.RecordFeedback(sent)).kept == pb.FEEDBACK_KEPT_LABELS
    (one,) = await listed(at)
    assert (one.verdict, one.adapter, one.unit_hash) == (CORRECTED, answer.decision.adapter, unit_hash("ann"))
    assert (one.HasField("input"), one.HasField("answer"), one.HasField("corrected")) == (False,) * 3
    assert b"secret" not in on_disk(tmp_path)
    assert b"question" not in on_disk(tmp_path)


async def test_what_the_server_forgot_may_be_sent_along(open_server: Open) -> None:
    at = await open_server()
    forgotten = "0" * 32
    refused = await failure(at.feedback.RecordFeedback(on(forgotten)))
    assert (refused.code().name, "answered_by" in refused.details()) == ("NOT_FOUND", True)
    sent = on(
        forgotten, answered_by="adapters/medical/versions/1.0.0", prompt="What?", answer="This.", unit="ann"
    )
    assert (await at.feedback.RecordFeedback(sent)).kept == pb.FEEDBACK_KEPT_TEXTS
    (one,) = await listed(at)
    assert (one.adapter, one.answer, one.digest) == (sent.answered_by, "This.", "")
    assert (one.input.chat.messages[0].text, one.unit_hash) == ("What?", unit_hash("ann"))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (on("", None), ["response_id", "verdict"]),
        (on("x" * 65), ["response_id"]),
        (on("x", GOOD, corrected="that"), ["verdict"]),
        (on("x", CORRECTED), ["corrected"]),
        (on("x", corrected=" "), ["verdict", "corrected"]),
        (on("x", answered_by="legal"), ["answered_by"]),
        (
            on("x", comment="c" * 2049, prompt="p" * 65537, answer="a" * 32769),
            ["comment", "prompt", "answer"],
        ),
        (on("x", unit="u" * 257), ["unit"]),
        (on("x", GOOD, should_have_been="base"), ["verdict"]),
        (on("x", BAD, should_have_been="legal"), ["should_have_been"]),
        (on("x", BAD, should_have_been="adapters/legal/versions/2.0.0"), ["should_have_been"]),
        (on("x", BAD, should_have_been="adapters/../legal"), ["should_have_been"]),
    ],
)
async def test_every_bad_field_is_named(open_server: Open, request_: Any, fields: list[str]) -> None:
    at = await open_server()
    found = details(await failure(at.feedback.RecordFeedback(request_)))["BadRequest"].field_violations
    assert [one.field for one in found] == fields


async def test_a_client_speaks_of_its_own_answers_as_far_as_its_tenant_agreed(
    open_server: Open, tmp_path: Path
) -> None:
    tokens = {name: new_token(name) for name in ("anna", "bert", "cleo", "dora")}
    path = tmp_path / "clients.toml"
    path.write_text(CLIENTS.format(**{name: hash_of(token) for name, token in tokens.items()}))
    as_ = {name: {"metadata": bearer(token)} for name, token in tokens.items()}
    path.chmod(0o600)
    at = await open_server(clients=path)
    annas = await at.inference.Generate(ask("a medical question", routing={"unit": "ann"}), **as_["anna"])
    berts = await at.inference.Generate(ask("a medical question", routing={"unit": "ann"}), **as_["bert"])
    say = at.feedback.RecordFeedback
    assert (await say(on(annas.response_id), **as_["anna"])).kept == pb.FEEDBACK_KEPT_TEXTS
    assert (await say(on(berts.response_id), **as_["bert"])).kept == pb.FEEDBACK_KEPT_LABELS
    assert (await failure(say(on(annas.response_id), **as_["bert"]))).code().name == "NOT_FOUND"
    assert (await failure(say(on(annas.response_id), **as_["dora"]))).code().name == "PERMISSION_DENIED"
    await say(on(annas.response_id), **as_["anna"])
    assert (await failure(say(on(annas.response_id), **as_["anna"]))).code().name == "RESOURCE_EXHAUSTED"

    assert [one.tenant for one in await listed(at, **as_["cleo"])] == ["acme"]
    assert [one.tenant for one in await listed(at, **as_["dora"])] == ["bert", "acme"]
    refused = at.feedback.ListFeedback(pb.ListFeedbackRequest(adapter="adapters/legal"), **as_["cleo"])
    assert (await failure(refused)).code().name == "NOT_FOUND"
    assert (await failure(listed(at, **as_["anna"]))).code().name == "PERMISSION_DENIED"
    delete, request = at.feedback.DeleteFeedback, pb.DeleteFeedbackRequest
    assert (await failure(delete(request(tenant="bert"), **as_["cleo"]))).code().name == "PERMISSION_DENIED"
    assert (await delete(request(unit="ann"), **as_["cleo"])).deleted == 1  # of its own tenant
    assert (await delete(request(unit_hash=unit_hash("ann")), **as_["dora"])).deleted == 1


async def test_all_feedback_of_a_unit_is_deleted_with_what_is_in_memory(
    open_server: Open, tmp_path: Path
) -> None:
    at = await open_server(audit=tmp_path / "audit.jsonl")
    answers = [
        await at.inference.Generate(ask("a medical question", routing={"unit": unit}))
        for unit in ("ann", "ann", "bob")
    ]
    for answer in answers:
        await at.feedback.RecordFeedback(on(answer.response_id))
    assert (await at.feedback.DeleteFeedback(pb.DeleteFeedbackRequest(unit="ann"))).deleted == 2
    assert [one.response_id for one in await listed(at)] == [answers[2].response_id]
    gone = await failure(at.feedback.RecordFeedback(on(answers[0].response_id)))
    assert gone.code().name == "NOT_FOUND"
    assert f"units/{unit_hash('ann')}" in (tmp_path / "audit.jsonl").read_text()
    wrong = [{}, {"unit": "null"}, {"unit": "a", "unit_hash": "0" * 32}, {"unit_hash": "x"}]
    for fields in wrong:
        error = await failure(at.feedback.DeleteFeedback(pb.DeleteFeedbackRequest(**fields)))
        assert error.code().name == "INVALID_ARGUMENT", fields


async def test_what_was_deleted_is_not_on_the_disk(open_server: Open, tmp_path: Path) -> None:
    at = await open_server()
    for unit in ("ann", "bob"):
        answer = await at.inference.Generate(ask(f"a medical question of {unit}", routing={"unit": unit}))
        await at.feedback.RecordFeedback(on(answer.response_id, comment=f"a word of {unit}"))
    assert b"of ann" in on_disk(tmp_path)
    assert (await at.feedback.DeleteFeedback(pb.DeleteFeedbackRequest(unit="ann"))).deleted == 1
    assert (b"of ann" in on_disk(tmp_path), b"of bob" in on_disk(tmp_path)) == (False, True)


async def test_what_a_reader_keeps_on_the_disk_goes_with_it(
    open_server: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "ERASE_SECONDS", 0.05)
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question of ann", routing={"unit": "ann"}))
    await at.feedback.RecordFeedback(on(answer.response_id))
    with closing(sqlite3.connect(tmp_path / "feedback.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM lora_router_feedback").fetchone() == (1,)
        assert (await at.feedback.DeleteFeedback(pb.DeleteFeedbackRequest(unit="ann"))).deleted == 1
        assert await listed(at) == []
        assert b"of ann" in on_disk(tmp_path)  # what the reader may still ask for
        reader.execute("COMMIT")
        await until(lambda: b"of ann" not in on_disk(tmp_path))


async def test_what_expired_is_not_on_the_disk(open_server: Open, tmp_path: Path) -> None:
    store = FeedbackStore.in_folder(tmp_path)
    for age, text in ((91, "an old question"), (89, "a new question")):
        when, messages_ = time.time() - age * 86_400, (("user", text),)
        store.put(Feedback(f"r{age}", when, "", "", "medical", "1.0.0", "good", messages_))
    await open_server(days=90)
    await until(lambda: b"an old question" not in on_disk(tmp_path))
    assert b"a new question" in on_disk(tmp_path)
    store.close()


async def test_pages_are_bounded_by_number_and_by_bytes(
    open_server: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = await open_server()
    for number in range(5):
        sent = on(f"{number:032x}", answered_by="adapters/medical", prompt="p" * 60_000)
        await at.feedback.RecordFeedback(sent)
    monkeypatch.setattr("router.extensions.feedback.service.PAGE_BYTES", 130_000)
    sizes, seen, token = [], [], ""
    while True:
        request = pb.ListFeedbackRequest(adapter="adapters/medical", page_size=3, page_token=token)
        page = await at.feedback.ListFeedback(request)
        sizes.append(len(page.feedback))
        seen += [one.response_id for one in page.feedback]
        if not (token := page.next_page_token):
            break
    assert (sizes, seen) == ([2, 2, 1], [f"{number:032x}" for number in range(5)])
    for bad in ({"page_token": "x"}, {"page_size": -1}, {"since": {"nanos": -1}}, {"adapter": "medical"}):
        request = pb.ListFeedbackRequest(**{"adapter": "adapters/medical", **bad})
        assert (await failure(at.feedback.ListFeedback(request))).code().name == "INVALID_ARGUMENT"


async def test_off_says_how_to_change_that(start_server: Start, connect: Connect) -> None:
    app = await start_server(feedback="off")
    assert app.part(FeedbackRecorder) is None
    service = feedback_pb2_grpc.FeedbackServiceStub(connect(app).channel)
    error = await failure(service.RecordFeedback(on("0" * 32)))
    assert (error.code().name, "setting `feedback.keep`" in error.details()) == ("FAILED_PRECONDITION", True)


async def test_a_database_that_is_down_is_said(open_server: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question"))

    def down(*_: Any) -> None:
        raise StoreDown("the disk is full")

    monkeypatch.setattr(at.recorder.store, "put", down)
    error = await failure(at.feedback.RecordFeedback(on(answer.response_id)))
    assert (error.code().name, details(error)["ErrorInfo"].reason) == ("UNAVAILABLE", NotSaved.reason)
    monkeypatch.setattr(recorders, "MOST_WAITING", 0)
    error = await failure(at.feedback.RecordFeedback(on(answer.response_id)))
    assert details(error)["ErrorInfo"].metadata["bound"] == "feedback"
