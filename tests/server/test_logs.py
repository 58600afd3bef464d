from __future__ import annotations

import io
import json
import logging

import pytest

from router.access.audit import Sparse
from router.server.logs import ACCESS_LOG, logging_to

log = logging.getLogger("router.test")
NASTY = "a\nb\x1b[31m\x00\u2028\u202e\x85"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, level: str = "info", **fields: object) -> list[str]:
    with logging_to(level, stream):
        log.info("request", extra={"fields": fields})
        log.debug("not shown")
    return stream.getvalue().split("\n")[:-1]


def test_one_json_line_a_record() -> None:
    (line,) = written(io.StringIO(), request_id="r", seconds=0.25, labels={"k": NASTY})
    record = json.loads(line)
    assert (record["event"], record["level"], record["request_id"]) == ("request", "info", "r")
    assert record["labels"]["k"] == NASTY
    assert line.isascii()
    assert line.isprintable()


def test_fields_are_cut() -> None:
    (line,) = written(io.StringIO(), path="x" * 1000, labels={"k": "y" * 1000})
    assert len(json.loads(line)["path"]) == 256
    assert len(json.loads(line)["labels"]["k"]) == 256


def test_text_for_a_terminal() -> None:
    (line,) = written(Terminal(), adapter=NASTY, client="two words", seconds=0.123456, empty="")
    assert line.isprintable()
    assert 'client="two words"' in line
    assert "seconds=0.1235" in line
    assert "empty" not in line


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_tracebacks_are_kept(stream: io.StringIO) -> None:
    with logging_to("info", stream):
        try:
            raise ValueError("why")
        except ValueError:
            log.exception("internal error")
    assert "ValueError: why" in stream.getvalue()
    if not stream.isatty():
        assert stream.getvalue().count("\n") == 1


def test_level_and_handlers_are_put_back() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    assert written(io.StringIO(), level="error") == []
    assert (root.level, root.handlers) == before


def test_of_many_lines_in_a_second_the_number_is_kept() -> None:
    now = 100.0
    sparse = Sparse(3, lambda: now)
    assert [sparse.next() for _ in range(10)] == [True] * 3 + [False] * 7
    assert (sparse.left_out(), sparse.left_out()) == (7, 0)
    now = 101.0
    assert sparse.next()


@pytest.mark.parametrize(
    ("stream", "level", "expected"),
    [
        (Terminal(), "info", ["refused"]),
        (Terminal(), "debug", ["answered", "refused"]),
        (io.StringIO(), "info", ["answered", "refused"]),
    ],
)
def test_a_terminal_shows_a_line_for_each_request_with_debug_only(
    stream: io.StringIO, level: str, expected: list[str]
) -> None:
    requests = logging.getLogger(ACCESS_LOG)
    with logging_to(level, stream):
        requests.info("answered")
        requests.warning("refused")
    lines = stream.getvalue().splitlines()
    assert [word for line in lines for word in ("answered", "refused") if word in line] == expected
    assert requests.level == logging.NOTSET
