"""An exception as the caller sees it, whatever the transport: a code, a message and a reason.

The code of a RouterError is its class's `code`; anything else is INTERNAL. An INTERNAL answer has a fixed
text and the request id. Nobody outside is told of the server's inside: no URL (of a database: with its
password), no path of this machine, no name of a class, no traceback; the log keeps all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath

from google.rpc import code_pb2

from router.errors import InvalidRequest, RouterError

INTERNAL = "INTERNAL"
INTERNAL_TEXT = "internal error; the server's log has the rest under this request id"
MAX_MESSAGE, MAX_FIELD = 1024, 256
MAX_LOOKED_AT = 16_384  # characters; nothing longer is ever told
MAX_FIELD_LOOKED_AT = 2_048  # the same of a field, of which there may be many
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
    return shown(error.violations[0].field) if isinstance(error, InvalidRequest) and error.violations else ""


def message_of(error: Exception) -> str:
    """What callers are told. One line; gRPC's message is percent-encoded, so what is not printable ASCII
    counts three times a byte."""
    if not isinstance(error, RouterError) or code_of(error) == INTERNAL:
        return INTERNAL_TEXT
    line = "".join(char if char.isprintable() else " " for char in public_message(error)[:MAX_MESSAGE])
    return clip(line, MAX_MESSAGE if line.isascii() else MAX_MESSAGE // 3)


def public_message(error: RouterError) -> str:
    """The message as callers get it; of some classes the text is fixed."""
    return error.told or redacted(error.message)


def withheld(error: RouterError) -> bool:
    """Whether message or metadata say more than callers are told."""
    return public_message(error) != error.message or any(
        redacted(text) != text for text in error.metadata.values()
    )


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
