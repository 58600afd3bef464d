"""Logs to a stream, one line a record: JSON, or text for people where the stream is a terminal.

Control characters are escaped in both. Writing happens in a thread, so that a blocked pipe cannot block
the event loop.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

ACCESS_LOG = "router.server.access"  # a line for each request
MAX_FIELD, MAX_TRACEBACK, MAX_WAITING = 256, 8192, 10_000


def _clipped(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= MAX_FIELD else value[: MAX_FIELD - 1] + "…"
    if isinstance(value, Mapping):
        return {str(key)[:MAX_FIELD]: _clipped(item) for key, item in value.items()}
    return value


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """Event, then the record's own fields."""
    fields: dict[str, Any] = {key: _clipped(item) for key, item in getattr(record, "fields", {}).items()}
    return {"event": _clipped(record.getMessage()), **fields}


class JsonFormatter(logging.Formatter):
    """One JSON object a line, ASCII only."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), **_fields(record)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-MAX_TRACEBACK:]
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """Time, level, event, then key=value pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows on lines of its own."""
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S.%f")[:-3]
        fields = _fields(record)
        event = fields.pop("event")
        pairs = "".join(f" {key}={_shown(value)}" for key, value in fields.items() if value != "")
        line = f"{time} {record.levelname.lower():7} {_visible(event)}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = _visible(value if isinstance(value, str) else json.dumps(value, default=str))
    return f'"{text}"' if " " in text else text


def _visible(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class _Handler(logging.handlers.QueueHandler):
    """Drops records when ten thousand are waiting, rather than wait or grow; counts what it dropped."""

    def __init__(self, waiting: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self.dropped = 0
        self._waiting = waiting

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Formatting is left to the thread: nothing is pickled here."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never blocks."""
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            self.dropped += 1


@contextmanager
def logging_to(level: str, stream: TextIO | None = None) -> Iterator[None]:
    """Send every log of the process to `stream` (standard error) until the end of the block.

    A person at a terminal reads a line for each request at level debug only; those of failed requests always.
    """
    stream = stream or sys.stderr
    writer = logging.StreamHandler(stream)
    writer.setFormatter(TextFormatter() if stream.isatty() else JsonFormatter())
    access_log = logging.getLogger(ACCESS_LOG)
    access_before = access_log.level
    if stream.isatty() and level != "debug":
        access_log.setLevel(logging.WARNING)
    waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING)
    handler, root = _Handler(waiting), logging.getLogger()
    listener = logging.handlers.QueueListener(waiting, writer)
    previous = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(previous)
        access_log.setLevel(access_before)
        listener.stop()
        if handler.dropped:
            print(f"{handler.dropped} log lines were dropped", file=stream)  # logging has ended
