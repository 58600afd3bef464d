"""Who should have answered, over gRPC: of one's own answers, and kept as far as one agreed."""

from __future__ import annotations

import asyncio
import errno
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import generate_latest

from router.access.clients import Client
from router.corrections import recorder
from router.corrections.recorder import CorrectionRequest, Corrections, RecentAnswers
from router.corrections.store import Correction, CorrectionStore
from router.engine.fake import FakeEngine
from router.errors import NotFound, NotSaved, Overloaded
from router.types import (
    AdapterRef,
    Decision,
    Keeping,
    MixturePart,
    Reason,
    Request,
    Turn,
    weaker,
)
from router.v1 import inference_pb2 as pb
from tests.fakes import FakeRegistry, adapter
from tests.security.helpers import bearer
from tests.server.helpers import Connect, Start, ask, details, failure, messages, stream

CLIENTS = """
[[client]]
id = "anna"
token_sha256 = ["{anna}"]
tenant = "acme"
roles = ["infer"]
adapters = ["medical", "legal"]
corrections = "texts"
{more}
[[client]]
id = "bert"
token_sha256 = ["{bert}"]
tenant = "acme"
roles = ["infer"]
adapters = ["medical"]
corrections = "off"

[[client]]
id = "cleo"
token_sha256 = ["{cleo}"]
roles = ["infer"]
adapters = ["*"]

[[client]]
id = "dora"
token_sha256 = ["{dora}"]
roles = ["observe"]
adapters = ["*"]
"""


def write_clients(folder: Path, more: str = "") -> SimpleNamespace:
    from router.access.clients import hash_of, new_token

    tokens = {name: new_token(name) for name in ("anna", "bert", "cleo", "dora")}
    path = folder / "clients.toml"
    path.write_text(CLIENTS.format(more=more, **{name: hash_of(token) for name, token in tokens.items()}))
    return SimpleNamespace(path=path, **{name: bearer(token) for name, token in tokens.items()})


def kept_in(folder: Path) -> tuple[Correction, ...]:
    return CorrectionStore(folder).read().corrections


@pytest.fixture
def open_server(start_server: Start, connect: Connect, tmp_path: Path) -> Any:
    """`await open_server(keeping, **settings)`: stubs of a server that keeps corrections in tmp_path."""

    async def start(keeping: Keeping = "texts", **settings: Any) -> SimpleNamespace:
        engine = FakeEngine()
        registry = FakeRegistry(engine, [adapter("medical"), adapter("legal", "2.0.0")])
        corrections = Corrections(CorrectionStore(tmp_path / "kept"), keeping)
        app = await start_server(engine=engine, registry=registry, corrections=corrections, **settings)
        return SimpleNamespace(app=app, **vars(connect(app)))

    return start


def said(response_id: str, name: str = "adapters/legal", text: str = "") -> pb.RecordCorrectionRequest:
    return pb.RecordCorrectionRequest(response_id=response_id, adapter=name, text=text)


async def test_what_is_kept_of_an_answer(open_server: Any, tmp_path: Path) -> None:
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question"))
    streamed = (await messages(at.inference.StreamGenerate(stream("nobody knows"))))[0].started
    first = await at.inference.RecordCorrection(said(answer.response_id))
    second = await at.inference.RecordCorrection(said(streamed.response_id, "base", "another text"))
    assert (first.kept, second.kept) == (pb.CORRECTION_KEPT_TEXT, pb.CORRECTION_KEPT_TEXT)
    page = generate_latest(at.app.metrics.registry).decode()
    assert 'lora_router_corrections_total{kept="texts",wrong="yes"} 1.0' in page
    assert 'lora_router_corrections_total{kept="texts",wrong="no"} 1.0' in page
    one, other = kept_in(tmp_path / "kept")
    assert (one.label, one.chosen, one.reason, one.text, one.tenant) == (
        *("legal", "medical", "classified", "a medical question", ""),
    )
    assert (one.response_id, one.confidence, one.wrong) == (answer.response_id, 0.9, True)
    assert (other.label, other.chosen, other.reason, other.wrong) == ("", "", "abstained", False)
    assert other.text == "nobody knows"  # what was asked, whatever is said of it later


async def test_labels_keep_no_text_whoever_sends_it(open_server: Any, tmp_path: Path) -> None:
    at = await open_server("labels")
    answer = await at.inference.Generate(ask("a medical question"))
    done = await at.inference.RecordCorrection(said(answer.response_id, text="a medical question"))
    assert done.kept == pb.CORRECTION_KEPT_LABELS
    (one,) = kept_in(tmp_path / "kept")
    assert (one.label, one.chosen, one.text) == ("legal", "medical", "")
    assert b"question" not in (tmp_path / "kept" / "_.jsonl").read_bytes()


async def test_off_keeps_nothing_and_says_how_to_change_that(server: Any, stubs: SimpleNamespace) -> None:
    answer = await stubs.inference.Generate(ask("a medical question"))
    error = await failure(stubs.inference.RecordCorrection(said(answer.response_id)))
    assert (error.code().name, "setting `corrections.keep`" in error.details()) == (
        "FAILED_PRECONDITION",
        True,
    )


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (said("", "adapters/legal"), ["response_id"]),
        (said("x" * 65), ["response_id"]),
        (said("x", ""), ["adapter"]),
        (said("x", "legal"), ["adapter"]),
        (said("x", "adapters/legal/versions/2.0.0"), ["adapter"]),
        (said("x", "adapters/../legal"), ["adapter"]),
        (said("x", "base", " \n"), ["text"]),
        (said("", "", "x" * 4001), ["response_id", "adapter", "text"]),
    ],
)
async def test_every_bad_field_is_named(open_server: Any, request_: Any, fields: list[str]) -> None:
    at = await open_server()
    found = details(await failure(at.inference.RecordCorrection(request_)))
    assert [one.field for one in found["BadRequest"].field_violations] == fields


async def test_an_adapter_that_is_not_there(open_server: Any, tmp_path: Path) -> None:
    at = await open_server()
    answer = await at.inference.Generate(ask("a medical question"))
    error = await failure(at.inference.RecordCorrection(said(answer.response_id, "adapters/ghost")))
    assert details(error)["ErrorInfo"].reason == "ADAPTER_NOT_FOUND"
    assert kept_in(tmp_path / "kept") == ()


async def test_an_answer_that_nobody_knows(open_server: Any, tmp_path: Path) -> None:
    at = await open_server()
    error = await failure(at.inference.RecordCorrection(said("0" * 32)))
    assert (error.code().name, "send the text" in error.details()) == ("NOT_FOUND", True)
    done = await at.inference.RecordCorrection(said("0" * 32, text="What is a tort?"))
    assert done.kept == pb.CORRECTION_KEPT_TEXT
    (one,) = kept_in(tmp_path / "kept")
    assert (one.label, one.chosen, one.wrong, one.text) == ("legal", None, False, "What is a tort?")
    for odd in ("0" * 31, "0" * 40, "no id", "Z" * 32):
        error = await failure(at.inference.RecordCorrection(said(odd, text="What is a tort?")))
        assert error.code().name == "NOT_FOUND"


async def test_an_answer_is_corrected_by_its_tenant_alone(open_server: Any, tmp_path: Path) -> None:
    clients = write_clients(tmp_path)
    at = await open_server(clients=clients.path)
    answer = await at.inference.Generate(ask("a medical question"), metadata=clients.anna)
    theirs = said(answer.response_id, "adapters/medical", "a medical question")
    other = await failure(at.inference.RecordCorrection(theirs, metadata=clients.cleo))
    nobodys = await failure(
        at.inference.RecordCorrection(said("0" * 40, "adapters/medical", "a"), metadata=clients.cleo)
    )
    assert other.details().replace(answer.response_id, "ID") == nobodys.details().replace("0" * 40, "ID")
    assert other.code().name == "NOT_FOUND"
    await at.inference.RecordCorrection(theirs, metadata=clients.anna)
    (one,) = kept_in(tmp_path / "kept")
    assert (one.tenant, one.text) == ("acme", "a medical question")
    assert [path.name for path in (tmp_path / "kept").glob("*.jsonl")] == ["acme.jsonl"]


async def test_only_adapters_that_the_client_may_know_of(open_server: Any, tmp_path: Path) -> None:
    clients = write_clients(tmp_path)
    at = await open_server(clients=clients.path)
    hidden = await failure(at.inference.RecordCorrection(said("0" * 40), metadata=clients.bert))
    ghost = await failure(
        at.inference.RecordCorrection(said("0" * 40, "adapters/ghost"), metadata=clients.bert)
    )
    assert hidden.details().replace("legal", "NAME") == ghost.details().replace("ghost", "NAME")
    denied = await failure(at.inference.RecordCorrection(said("0" * 40), metadata=clients.dora))
    assert denied.code().name == "PERMISSION_DENIED"


async def test_what_a_client_agreed_to(open_server: Any, tmp_path: Path) -> None:
    clients = write_clients(tmp_path)
    at = await open_server(clients=clients.path)
    asked = ask("a medical question")
    off = await at.inference.Generate(asked, metadata=clients.bert)
    error = await failure(
        at.inference.RecordCorrection(
            said(off.response_id, "adapters/medical", "a medical question"), metadata=clients.bert
        )
    )
    assert (error.code().name, "clients file" in error.details()) == ("FAILED_PRECONDITION", True)
    # Its text was not remembered either, so that nobody else of the tenant can bring it to the disk.
    error = await failure(at.inference.RecordCorrection(said(off.response_id), metadata=clients.anna))
    assert error.code().name == "NOT_FOUND"
    answer = await at.inference.Generate(asked, metadata=clients.cleo)  # says nothing: labels
    done = await at.inference.RecordCorrection(
        said(answer.response_id, text="a medical question"), metadata=clients.cleo
    )
    assert done.kept == pb.CORRECTION_KEPT_LABELS
    assert [(one.tenant, one.text) for one in kept_in(tmp_path / "kept")] == [("cleo", "")]


async def test_corrections_count_as_outcomes(open_server: Any, tmp_path: Path) -> None:
    clients = write_clients(tmp_path, "outcomes_per_day = 2")
    at = await open_server(clients=clients.path)
    answer = await at.inference.Generate(ask("a medical question"), metadata=clients.anna)
    for _ in range(2):
        await at.inference.RecordCorrection(said(answer.response_id), metadata=clients.anna)
    found = details(
        await failure(at.inference.RecordCorrection(said(answer.response_id), metadata=clients.anna))
    )
    assert found["ErrorInfo"].metadata["quota"] == "outcomes_per_day"
    assert len(kept_in(tmp_path / "kept")) == 1  # twice of one answer: the last word counts


def answered(response_id: str, text: str = "hi") -> tuple[Request, Decision]:
    return Request(response_id, (Turn("user", text),)), Decision(None, Reason.ABSTAINED)


CLIENT = Client("", corrections="texts")


async def test_a_disk_that_takes_nothing_is_told_and_costs_no_quota(
    open_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = write_clients(tmp_path, "outcomes_per_day = 1")
    at = await open_server(clients=clients.path)
    answer = await at.inference.Generate(ask("a medical question"), metadata=clients.anna)

    def full(self: CorrectionStore, correction: Correction) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    with monkeypatch.context() as patched:
        patched.setattr(CorrectionStore, "append", full)
        error = await failure(at.inference.RecordCorrection(said(answer.response_id), metadata=clients.anna))
        assert (error.code().name, details(error)["ErrorInfo"].reason) == ("UNAVAILABLE", "NOT_SAVED")
        assert "secret" not in error.details()
    await at.inference.RecordCorrection(said(answer.response_id), metadata=clients.anna)


async def test_no_more_wait_for_the_disk_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    class Slow(CorrectionStore):
        def append(self, correction: Correction) -> None:
            free.wait(10)
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(recorder, "MOST_WAITING", 2)
    corrections = Corrections(Slow(Path("/nowhere")), "texts")
    corrections.remember(*answered("a"), CLIENT)
    waiting = [
        asyncio.ensure_future(corrections.record(CorrectionRequest("a", ""), CLIENT)) for _ in range(2)
    ]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await corrections.record(CorrectionRequest("a", ""), CLIENT)
    waiting[0].cancel()  # a caller who left: its correction is on its way all the same
    free.set()
    with pytest.raises(NotSaved):
        await waiting[1]
    assert corrections._waiting == 0
    corrections.close()


async def test_a_mixture_that_a_caller_named_is_no_choice_of_routings(tmp_path: Path) -> None:
    store = CorrectionStore(tmp_path)
    corrections = Corrections(store, "texts")
    request, decision = answered("a")
    parts = tuple(MixturePart(AdapterRef(name, "1"), 500) for name in ("legal", "medical"))
    corrections.remember(request, replace(decision, mixture=parts), CLIENT)
    await corrections.record(CorrectionRequest("a", "legal"), CLIENT)
    assert [(one.chosen, one.wrong) for one in store.read().corrections] == [(None, False)]
    corrections.close()


async def test_a_long_text_is_not_remembered(tmp_path: Path) -> None:
    corrections = Corrections(CorrectionStore(tmp_path), "texts", RecentAnswers())
    corrections.remember(*answered("a", "x" * 4001), CLIENT)
    assert await corrections.record(CorrectionRequest("a", "legal"), CLIENT) == "labels"
    assert await corrections.record(CorrectionRequest("a", "legal", "its beginning"), CLIENT) == "texts"
    with pytest.raises(NotFound):
        await corrections.record(CorrectionRequest("b", "legal"), CLIENT)
    corrections.close()


def test_the_weaker_word_counts() -> None:
    assert [weaker("texts", other) for other in ("off", "labels", "texts")] == ["off", "labels", "texts"]
    assert [weaker(other, "labels") for other in ("off", "labels", "texts")] == ["off", "labels", "labels"]
