"""An exception as the caller sees it, whatever the transport: a code, a message and a reason.

The code of a RouterError is its class's `code`; anything else is INTERNAL, and has a fixed text and the
request id. A class whose messages may tell of the server's inside, such as the address of a database or a
path, has a fixed text (`told`) for callers, too; the log keeps all of it. Messages of the other classes are
told as they are: whoever writes one puts nothing into it but what the caller sent or may know.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.rpc import code_pb2

from router.errors import InvalidRequest, RouterError

INTERNAL = "INTERNAL"
INTERNAL_TEXT = "internal error; the server's log has the rest under this request id"
MAX_MESSAGE, MAX_FIELD = 1024, 256
HTTP_STATUS: Mapping[str, int] = {
    "OK": 200,
    "CANCELLED": 499,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "FAILED_PRECONDITION": 400,
    "RESOURCE_EXHAUSTED": 429,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
STATUS_OF_REASON: Mapping[str, int] = {
    "BODY_TOO_LARGE": 413,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "BODY_INCOMPLETE": 408,
    "METHOD_NOT_ALLOWED": 405,
}


def code_of(error: Exception) -> str:
    """The status code of an exception, by gRPC's names."""
    return error.code if isinstance(error, RouterError) else INTERNAL


def reason_of(error: Exception) -> str:
    """Why, as callers are told."""
    return error.reason if isinstance(error, RouterError) else INTERNAL


def http_status(code: str, reason: str) -> int:
    """The status of an HTTP answer."""
    return STATUS_OF_REASON.get(reason) or HTTP_STATUS.get(code, 500)


def grpc_status(code: str) -> int:
    """The number of a code."""
    return int(code_pb2.Code.Value(code))


def first_field(error: Exception) -> str:
    """The first field that is wrong; '' if none is."""
    return clip(error.violations[0].field) if isinstance(error, InvalidRequest) and error.violations else ""


def message_of(error: Exception) -> str:
    """What callers are told. One line; gRPC's message is percent-encoded, so what is not printable ASCII
    counts three times a byte."""
    if not isinstance(error, RouterError) or code_of(error) == INTERNAL:
        return INTERNAL_TEXT
    line = "".join(char if char.isprintable() else " " for char in public_message(error)[:MAX_MESSAGE])
    return clip(line, MAX_MESSAGE if line.isascii() else MAX_MESSAGE // 3)


def public_message(error: RouterError) -> str:
    """The message as callers get it; of some classes the text is fixed."""
    return error.told or error.message


def withheld(error: RouterError) -> bool:
    """Whether the message says more than callers are told."""
    return public_message(error) != error.message


def clip(text: str, most: int = MAX_FIELD) -> str:
    """`text`, cut to `most` bytes with an ellipsis; half characters (lone surrogates) become `?`."""
    raw = text[: most + 1].encode(errors="replace")  # of a long text no more is looked at
    return raw.decode() if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"
