"""An exception as the caller sees it: one gRPC status with google.rpc details.

The code of a RouterError is its class's `code`; anything else is INTERNAL. An INTERNAL answer has a fixed
text and the request id. Nobody outside is told of the server's inside: no URL (of a database: with its
password), no path of this machine, no name of a class, no traceback; the log keeps all of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as rpc
from google.rpc import status_pb2

from router.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    ResourceExhausted,
    RouterError,
    Unavailable,
)

DOMAIN = "lora-router"
CODES = {code.name: code for code in grpc.StatusCode}
INTERNAL_TEXT = "internal error; the server's log has the rest under this request id"
MAX_MESSAGE, MAX_DETAILS, MAX_FIELD, MAX_METADATA = 1024, 3584, 256, 16
MAX_LOOKED_AT = 16_384  # characters; nothing longer is ever told
ENTRY_BYTES = 3  # of an entry's tag and length; one with two texts of MAX_FIELD bytes has less than 16 KiB
MAX_FIELD_LOOKED_AT = 2_048  # the same of a field, of which there may be many


@dataclass(frozen=True, slots=True)
class Status:
    """What `context.abort` needs."""

    code: grpc.StatusCode
    message: str
    trailers: tuple[tuple[str, str | bytes], ...]


def code_of(error: Exception) -> grpc.StatusCode:
    """The status code of an exception."""
    return CODES[error.code] if isinstance(error, RouterError) else grpc.StatusCode.INTERNAL


def status_of(error: Exception, request_id: str) -> Status:
    """Code, message and trailers; all of it stays under gRPC's 8 KiB for metadata."""
    code = code_of(error)
    if isinstance(error, RouterError) and code is not grpc.StatusCode.INTERNAL:
        message = _message(told(error))
        details = [error_info(error.reason, error.metadata, request_id), *details_of(error)]
    else:
        reason = error.reason if isinstance(error, RouterError) else "INTERNAL"
        message, details = INTERNAL_TEXT, [error_info(reason, {}, request_id)]
    details.append(rpc.RequestInfo(request_id=request_id))
    trailers: list[tuple[str, str | bytes]] = [
        ("grpc-status-details-bin", _packed(code, message, details)),
        ("x-request-id", request_id),
    ]
    if isinstance(error, Unavailable):
        trailers.append(("grpc-retry-pushback-ms", str(int(error.retry_after * 1000))))
    return Status(code, message, tuple(trailers))


def told(error: RouterError) -> str:
    """The message as callers get it; of some classes the text is fixed."""
    return error.told or redacted(error.message)


def withheld(error: RouterError) -> bool:
    """Whether message or metadata say more than callers are told."""
    return told(error) != error.message or any(redacted(text) != text for text in error.metadata.values())


def _message(text: str) -> str:
    """One line; grpc-message is percent-encoded, so what is not printable ASCII counts three times a byte."""
    line = "".join(char if char.isprintable() else " " for char in text[:MAX_MESSAGE])
    return clip(line, MAX_MESSAGE if line.isascii() else MAX_MESSAGE // 3)


def _packed(code: grpc.StatusCode, message: str, details: list[Any]) -> bytes:
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return bytes(status.SerializeToString())


# -- What each class of the error tree adds to ErrorInfo.


def details_of(error: RouterError) -> list[Any]:
    """What the class and its bases add, the most derived first."""
    found = [DETAILS[kind](error) for kind in type(error).__mro__ if kind in DETAILS]
    if isinstance(error, QuotaExceeded) and error.retry_after is not None:
        found.append(_retry(error.retry_after))
    return found


def error_info(reason: str, metadata: Mapping[str, str], request_id: str) -> rpc.ErrorInfo:
    """The detail every error has."""
    pairs = {clip(redacted(key), 63): shown(value) for key, value in list(metadata.items())[:MAX_METADATA]}
    return rpc.ErrorInfo(reason=reason, domain=DOMAIN, metadata={**pairs, "request_id": request_id})


def _bad_request(error: InvalidRequest) -> rpc.BadRequest:
    """The first violations, as many as MAX_DETAILS bytes hold."""
    detail, size = rpc.BadRequest(), 0
    for v in error.violations:
        entry = rpc.BadRequest.FieldViolation(field=shown(v.field), description=shown(v.description))
        size += entry.ByteSize() + ENTRY_BYTES
        if size > MAX_DETAILS:
            break
        detail.field_violations.append(entry)
    return detail


def _retry(seconds: float) -> rpc.RetryInfo:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    return rpc.RetryInfo(retry_delay=delay)


def _missing(error: NotFound) -> rpc.ResourceInfo:
    return rpc.ResourceInfo(
        resource_type=error.resource_type, resource_name=shown(error.name), description="not found"
    )


def _existing(error: AlreadyExists) -> rpc.ResourceInfo:
    return rpc.ResourceInfo(
        resource_name=shown(error.metadata.get("resource", "")), description="exists already"
    )


def _precondition(error: FailedPrecondition) -> rpc.PreconditionFailure:
    return rpc.PreconditionFailure(
        violations=[
            rpc.PreconditionFailure.Violation(
                type=error.reason,
                subject=shown(error.metadata.get("resource", "")),
                description=clip(told(error)),
            )
        ]
    )


def _quota(error: ResourceExhausted) -> rpc.QuotaFailure:
    return rpc.QuotaFailure(
        violations=[rpc.QuotaFailure.Violation(subject="memory", description=clip(told(error)))]
    )


def _used_up(error: QuotaExceeded) -> rpc.QuotaFailure:
    return rpc.QuotaFailure(
        violations=[rpc.QuotaFailure.Violation(subject=error.holder, description=clip(told(error)))]
    )


DETAILS: Mapping[type[RouterError], Callable[[Any], Any]] = {
    InvalidRequest: _bad_request,
    Unavailable: lambda error: _retry(error.retry_after),
    NotFound: _missing,
    AlreadyExists: _existing,
    FailedPrecondition: _precondition,
    ResourceExhausted: _quota,
    QuotaExceeded: _used_up,
}


def clip(text: str, most: int = MAX_FIELD) -> str:
    """`text`, cut to `most` bytes with an ellipsis; half characters (lone surrogates) become `?`."""
    raw = text.encode(errors="replace")
    return raw.decode() if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"


def shown(text: str) -> str:
    """`text` as callers may see it, and as long as they may."""
    return clip(redacted(text, most=MAX_FIELD_LOOKED_AT))


# -- What is taken out of texts.

TRACEBACK = "Traceback (most recent call last)"
_QUOTED = re.compile(r"""(['"])((?:~?/|~?\\|[A-Za-z]:[\\/])[^'"]*)\1""")
_UNCLOSED = re.compile(r"""(['"])(?:~?/|~?\\|[A-Za-z]:[\\/])[^'"]*\Z""")
_OBJECT = re.compile(r"<[\w.]{1,200} object at 0x[0-9a-f]{1,16}>|<class '[^']{1,200}'>")
_WORD = re.compile(r"""[^\s'"`(),;<>\[\]{}]+""")
_ABSOLUTE = re.compile(r"(?:(?<=[=:@|])|^)(?:~?/(?=[^/])|//(?=\w)|\\\\(?=\w)|[A-Za-z]:[\\/](?=\w))")
_SOURCE = re.compile(r"\.pyc?(?::\d+)?$")
_CLASS = re.compile(r"(?:^|(?<=[=:]))(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt)$")


def redacted(text: str, files: bool = False, most: int = MAX_LOOKED_AT, faults: bool = False) -> str:
    """The first `most` characters of `text` without URLs, absolute paths, names of exceptions and tracebacks.

    With `files` the last part of a path stays: that of a file in an adapter's folder, for who looks after it.
    With `faults` names of exceptions and of source files stay: for who looks after plugins.

    >>> redacted("FileNotFoundError: no '/srv/models/a b.bin', see http://wiki.local/x")
    "[error]: no '[path]', see [url]"
    >>> redacted("cannot read /srv/adapters/medical/adapter.toml: denied", files=True)
    'cannot read adapter.toml: denied'
    """
    cut = text if len(text) <= most else _UNCLOSED.sub(r"\1[path]", text[:most])
    head, traced, _ = cut.partition(TRACEBACK)
    head = _OBJECT.sub("[object]", head)
    head = _QUOTED.sub(lambda found: f"{found[1]}{_path(found[2], files)}{found[1]}", head)
    head = _WORD.sub(lambda found: _word(found[0], files, faults), head)
    return f"{head}[traceback]" if traced else head


def _word(word: str, files: bool, faults: bool) -> str:
    bare = word.rstrip(".:!?")
    end = word[len(bare) :]
    if "://" in bare:
        return "[url]" + end
    if (found := _ABSOLUTE.search(bare)) is not None:
        return bare[: found.start()] + _path(bare[found.start() :], files) + end
    if faults:
        return word
    if _SOURCE.search(bare):
        return "[path]" + end
    return _CLASS.sub("[error]", bare) + end


def _path(path: str, files: bool) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return (kind(path).name if files else "") or "[path]"
