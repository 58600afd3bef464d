"""Rows 10 and 11 of the conventions: every error is rich, and none leaks."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from router.errors import (
    AdapterNotFound,
    AdapterRejected,
    AlreadyExists,
    ConfigError,
    DataLoss,
    DeadlineExceeded,
    Draining,
    EngineFailed,
    ExperimentNotFound,
    FailedPrecondition,
    FieldViolation,
    GateNotPassed,
    InvalidRequest,
    NotFound,
    NotLoaded,
    NotSaved,
    Overloaded,
    PromptTooLong,
    ResourceExhausted,
    RouterError,
    StaleEtag,
    StoreDown,
    Unavailable,
)
from tests.server.helpers import ask, details, failure, long_stream, stream

SECRET = "/home/someone/secret.py"
CASES = [
    (InvalidRequest([FieldViolation("input.text", "is bad")]), "INVALID_ARGUMENT", "BadRequest"),
    (PromptTooLong(10, 11), "INVALID_ARGUMENT", "BadRequest"),
    (NotFound("experiment", "experiments/x"), "NOT_FOUND", "ResourceInfo"),
    (AdapterNotFound("adapters/x"), "NOT_FOUND", "ResourceInfo"),
    (ExperimentNotFound("experiments/x"), "NOT_FOUND", "ResourceInfo"),
    (AlreadyExists("there already", resource="adapters/x"), "ALREADY_EXISTS", "ResourceInfo"),
    (FailedPrecondition("not now"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (AdapterRejected("rank 512", resource="adapters/x"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (GateNotPassed("no report", resource="adapters/x"), "FAILED_PRECONDITION", "PreconditionFailure"),
    (StaleEtag("changed"), "ABORTED", "ErrorInfo"),
    (DataLoss("bytes changed"), "DATA_LOSS", "ErrorInfo"),
    (Unavailable("later", 2.5), "UNAVAILABLE", "RetryInfo"),
    (Overloaded("full"), "UNAVAILABLE", "RetryInfo"),
    (StoreDown("no connection"), "UNAVAILABLE", "RetryInfo"),
    (NotSaved("no room"), "UNAVAILABLE", "RetryInfo"),
    (Draining("stopping"), "UNAVAILABLE", "RetryInfo"),
    (NotLoaded("loading"), "UNAVAILABLE", "RetryInfo"),
    (ResourceExhausted("no memory"), "RESOURCE_EXHAUSTED", "QuotaFailure"),
    (DeadlineExceeded("too late"), "DEADLINE_EXCEEDED", "ErrorInfo"),
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
    fakes.router.error = Overloaded("full", 2.5)
    seen = await failure(stubs.inference.Generate(ask()))
    assert dict(seen.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"
    assert details(seen)["RetryInfo"].retry_delay.ToMilliseconds() == 2500


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


async def test_junk_bytes_are_the_callers_fault(stubs: SimpleNamespace) -> None:
    for method in ("router.v1.InferenceService/Generate", "grpc.health.v1.Health/Check"):
        seen = await failure(stubs.channel.unary_unary(f"/{method}")(b"\xff\xff\xff"))
        assert seen.code().name == "INVALID_ARGUMENT"
        assert "protobuf" not in seen.details().lower()
    for method in ("router.v1.InferenceService/StreamGenerate", "router.v1.AdapterService/WatchAdapters"):
        seen = await failure(stubs.channel.unary_stream(f"/{method}")(b"\xff\xff\xff"))
        assert seen.code().name == "INVALID_ARGUMENT"
    reflect = stubs.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    assert (await failure(reflect(iter([b"\xff\xff"])))).code().name == "INVALID_ARGUMENT"


async def test_unknown_method_is_unimplemented(stubs: SimpleNamespace) -> None:
    seen = await failure(stubs.channel.unary_unary("/router.v1.InferenceService/Nope")(b""))
    assert seen.code().name == "UNIMPLEMENTED"
