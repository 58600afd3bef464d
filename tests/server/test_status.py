"""Every error is rich, none leaks: what may tell of the server's inside is for the log alone."""

from __future__ import annotations

import re
import time
import traceback
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.rpc import error_details_pb2, status_pb2

from router.engine.fake import FakeEngine
from router.errors import (
    MOST_FINDINGS,
    AdapterNotFound,
    AdapterRejected,
    AlreadyExists,
    BodyIncomplete,
    BodyTooLarge,
    ChangedElsewhere,
    ConfigError,
    DataLoss,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    ExperimentNotFound,
    FailedPrecondition,
    FieldViolation,
    Findings,
    GateNotPassed,
    InvalidRequest,
    NotActivated,
    NotFound,
    NotLoaded,
    NotSaved,
    Overloaded,
    PermissionDenied,
    PromptTooLong,
    QuotaExceeded,
    ResourceExhausted,
    RouterError,
    SharedDown,
    StaleEtag,
    StoreDown,
    TokenMissing,
    Unauthenticated,
    Unavailable,
    WrongContentType,
)
from router.registry.registry import Registry, RegistryOptions
from router.server.grpc_adapter import status_of
from router.v1 import adapters_pb2 as pb
from tests.fakes import FakeRouter
from tests.registry.life import drop, eventually
from tests.server.helpers import Connect, Start, ask, details, failure, long_stream, stream

SECRET = "/home/someone/secret.py"
CASES = [
    (InvalidRequest([FieldViolation("input.text", "is bad")]), "INVALID_ARGUMENT", "BadRequest"),
    (PromptTooLong(10, 11), "INVALID_ARGUMENT", "BadRequest"),
    (NotActivated((1, 2)), "INVALID_ARGUMENT", "BadRequest"),
    (NotFound("experiment", "experiments/x"), "NOT_FOUND", "ResourceInfo"),
    (AdapterNotFound("adapters/x"), "NOT_FOUND", "ResourceInfo"),
    (ExperimentNotFound("experiments/x"), "NOT_FOUND", "ResourceInfo"),
    (AlreadyExists("there already", resource="adapters/x"), "ALREADY_EXISTS", "ResourceInfo"),
    (FailedPrecondition("not now"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (AdapterRejected("rank 512", resource="adapters/x"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (GateNotPassed("no report", resource="adapters/x"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (Unauthenticated(SECRET), "UNAUTHENTICATED", "ErrorInfo"),
    (TokenMissing("send one"), "UNAUTHENTICATED", "ErrorInfo"),
    (PermissionDenied("needs a role"), "PERMISSION_DENIED", "ErrorInfo"),
    (StaleEtag("changed"), "ABORTED", "ErrorInfo"),
    (ChangedElsewhere("changed"), "ABORTED", "ErrorInfo"),
    (DataLoss("bytes changed"), "DATA_LOSS", "ErrorInfo"),
    (Unavailable("later", 2.5), "UNAVAILABLE", "RetryInfo"),
    (Overloaded("full", bound="engine"), "UNAVAILABLE", "RetryInfo"),
    (StoreDown("no connection"), "UNAVAILABLE", "RetryInfo"),
    (NotSaved("no room"), "UNAVAILABLE", "RetryInfo"),
    (SharedDown("no connection"), "UNAVAILABLE", "RetryInfo"),
    (Draining("stopping"), "UNAVAILABLE", "RetryInfo"),
    (NotLoaded("loading"), "UNAVAILABLE", "RetryInfo"),
    (ResourceExhausted("no memory"), "RESOURCE_EXHAUSTED", "QuotaFailure"),
    (QuotaExceeded("enough", "max_concurrent", 1.0), "RESOURCE_EXHAUSTED", "RetryInfo"),
    (QuotaExceeded("enough", "max_concurrent"), "RESOURCE_EXHAUSTED", "QuotaFailure"),
    (BodyTooLarge("4 bytes"), "RESOURCE_EXHAUSTED", "ErrorInfo"),
    (DeadlineExceeded("too late"), "DEADLINE_EXCEEDED", "ErrorInfo"),
    (BodyIncomplete("10 s"), "DEADLINE_EXCEEDED", "ErrorInfo"),
    (WrongContentType("application/json"), "INVALID_ARGUMENT", "BadRequest"),
    (EngineFailed(SECRET), "INTERNAL", "RequestInfo"),
    (ConfigError(SECRET), "INTERNAL", "RequestInfo"),
    (ValueError(SECRET), "INTERNAL", "RequestInfo"),
    (TimeoutError(SECRET), "INTERNAL", "RequestInfo"),
]


@pytest.mark.parametrize(("error", "code", "detail"), CASES, ids=lambda value: type(value).__name__)
async def test_every_error_is_rich(
    fakes: SimpleNamespace, stubs: SimpleNamespace, error: Exception, code: str, detail: str
) -> None:
    fakes.router.error = error
    for call in (stubs.inference.Generate(ask()), stubs.inference.StreamGenerate(stream())):
        seen = await failure(call)
        found = details(seen)
        info = found["ErrorInfo"]
        assert seen.code().name == code
        assert detail in found
        assert re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", info.reason)
        assert info.domain == "lora-router"
        assert info.metadata["request_id"] == found["RequestInfo"].request_id
        assert sum(len(k) + len(v) for k, v in seen.trailing_metadata()) < 8192
        assert SECRET not in repr((seen.details(), found))


def test_every_class_of_the_tree_is_in_the_table() -> None:
    def tree(kind: type[RouterError]) -> set[type[RouterError]]:
        return {kind}.union(*(tree(child) for child in kind.__subclasses__()))

    ours = {kind for kind in tree(RouterError) if kind.__module__ == "router.errors"}
    assert ours - {RouterError} == {type(error) for error, _, _ in CASES if isinstance(error, RouterError)}


async def test_an_exception_in_a_step_fails_only_its_requests(
    fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    fakes.engine.fail_step(SECRET)
    seen = await failure(stubs.inference.Generate(ask()))
    assert seen.code().name == "INTERNAL"
    assert SECRET not in repr(seen)
    assert (await stubs.inference.Generate(ask())).text.startswith("[base]")


async def test_a_failure_after_the_first_chunk_ends_the_stream(
    fakes: SimpleNamespace, stubs: SimpleNamespace
) -> None:
    events = aiter(stubs.inference.StreamGenerate(long_stream()))
    assert (await anext(events)).HasField("started")
    assert (await anext(events)).HasField("delta")
    fakes.engine.fail_step("boom")
    assert (await failure(events)).code().name == "INTERNAL"


async def test_hints_for_a_retry(fakes: SimpleNamespace, stubs: SimpleNamespace) -> None:
    fakes.router.error = Overloaded("full", 2.5, bound="engine")
    seen = await failure(stubs.inference.Generate(ask()))
    assert dict(seen.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"
    assert details(seen)["RetryInfo"].retry_delay.ToMilliseconds() == 2500


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x" * 5000, "ü" * 5000, "\x1b[31m\n" * 1000])
async def test_trailers_stay_small_whatever_is_echoed(
    fakes: SimpleNamespace, stubs: SimpleNamespace, name: str
) -> None:
    fakes.router.error = AdapterNotFound(name)
    seen = await failure(stubs.inference.Generate(ask()))
    assert seen.code().name == "NOT_FOUND"
    assert "\n" not in (seen.details() or "")
    fakes.router.error = InvalidRequest([FieldViolation(name, name)] * 200)
    assert (await failure(stubs.inference.Generate(ask()))).code().name == "INVALID_ARGUMENT"


URL = "postgresql+psycopg://router:s3cret@db.internal:5432/trials"
PATH = "/srv/models/secret base/weights.bin"
INSIDE = f"the store {URL}: (psycopg.errors.OperationalError) cannot read '{PATH}'"
SECRETS = ("s3cret", "db.internal", "srv", "weights.bin", "OperationalError")
WITHHELD = (
    *(ConfigError, DataLoss, EngineFailed, NotSaved),
    *(SharedDown, StoreDown, Unauthenticated),
)


@pytest.mark.parametrize("kind", WITHHELD)
async def test_what_may_tell_of_the_inside_is_for_the_log_alone(
    kind: type[RouterError], stubs: SimpleNamespace, fakes: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    fakes.router.error = kind(INSIDE)
    seen = await failure(stubs.inference.Generate(ask(), metadata=(("x-request-id", "r-1"),)))
    all_of_it = repr((seen.details(), details(seen), seen.trailing_metadata()))
    assert [secret for secret in SECRETS if secret in all_of_it] == []
    logged = next(r for r in caplog.records if r.name == "router.server.interceptors")
    assert logged.fields["request_id"] == "r-1"  # type: ignore[attr-defined]
    kept = repr(logged.__dict__) + "".join(traceback.format_exception(fakes.router.error))
    assert all(secret in kept for secret in SECRETS)


@pytest.mark.parametrize(
    "text",
    [
        "Pointer '/$defs/x' does not exist; $ref is 'https://example.org/s.json'",
        "must be one of ValueError, KeyError and a.py, got C:\\temp",
        "page '/console/x' not found",
    ],
)
async def test_what_is_told_of_a_request_is_told_as_it_is(
    stubs: SimpleNamespace, fakes: SimpleNamespace, text: str
) -> None:
    fakes.router.error = InvalidRequest([FieldViolation("sampling.json_schema", text)])
    seen = await failure(stubs.inference.Generate(ask()))
    assert seen.details() == f"sampling.json_schema: {text}"
    assert details(seen)["BadRequest"].field_violations[0].description == text
    fakes.router.error = PermissionDenied(text)
    assert (await failure(stubs.inference.Generate(ask()))).details() == text


@pytest.mark.slow
async def test_a_folder_that_cannot_be_read_is_told_by_its_file(
    tmp_path: Path, start_server: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "adapters"
    folder = drop(root, "broken")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    drop(root, "vanishing")
    engine = FakeEngine()
    engine.start()
    options = RegistryOptions(
        state_dir=tmp_path / "state", settle_seconds=0.02, grace_seconds=0.1, preload=False, gate="off"
    )
    async with AsyncExitStack() as held:
        registry = Registry(engine, [root], options)
        held.push_async_callback(registry.close)
        await registry.start()
        stubs = connect(await start_server(engine=engine, registry=registry, router=FakeRouter(registry)))
        await eventually(lambda: len(registry.list()) == 2)
        listed = await stubs.adapters.ListAdapters(pb.ListAdaptersRequest())
        assert "adapter_config.json" in listed.adapters[0].error
        monkeypatch.setattr("router.registry.loading.read_whole", _raises)
        texts = [repr(listed)]
        for name in ("broken", "vanishing"):
            seen = await failure(stubs.adapters.LoadAdapter(pb.LoadAdapterRequest(name=f"adapters/{name}")))
            texts.append(repr((seen.details(), details(seen))))
        texts.append(repr(await stubs.adapters.ListAdapters(pb.ListAdaptersRequest())))
    assert [text for text in texts if any(w in text for w in (str(tmp_path), "srv", "PermissionError"))] == []


def _raises(*_: object) -> None:
    raise PermissionError(13, "Permission denied", PATH)


def test_details_are_cut_before_they_are_built() -> None:
    text = "/srv/" + "x" * 100_000
    begin = time.thread_time()
    status = status_of(InvalidRequest([FieldViolation(f"messages[{i}]", text) for i in range(200_000)]), "id")
    assert time.thread_time() - begin < 2  # it was quadratic, and took minutes
    assert sum(len(key) + len(value) for key, value in status.trailers) < 8192
    found = status_pb2.Status.FromString(bytes(dict(status.trailers)["grpc-status-details-bin"]))
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in found.details)
    assert bad.field_violations[0].field == "messages[0]"


def test_violations_beyond_the_first_are_counted() -> None:
    error = InvalidRequest([FieldViolation(f"f{i}", "wrong") for i in range(MOST_FINDINGS + 7)], 3)
    assert len(error.violations) == MOST_FINDINGS + 1
    assert error.violations[-1] == FieldViolation("", "and 10 more")
    assert error.message.endswith("; and 10 more")
    found = Findings()
    for i in range(MOST_FINDINGS + 1):
        found.add(f"f{i}", "wrong")
    with pytest.raises(InvalidRequest, match="and 1 more"):
        found.check()


def test_half_characters_do_not_break_a_status() -> None:
    error = InvalidRequest([FieldViolation("json\ud800x", "is \udfff unknown")])
    made = status_of(error, "id")
    (packed,) = [value for key, value in made.trailers if key == "grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    assert b"json?x" in packed
    made.message.encode()
