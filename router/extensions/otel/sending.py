"""On the way to the collector: a bounded queue, a thread of its own, and one warning when nothing arrives."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter

from router.extensions.otel.spans import Ended

log = logging.getLogger(__name__)
LIBRARY = logging.getLogger("opentelemetry.exporter")  # what it logs of each try, we tell once
OF_CALLERS = logging.getLogger("opentelemetry.trace")  # logs what is wrong with headers, in their words


class LastWords(logging.Handler):
    """Keeps what the exporter's library said last."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.text = record.getMessage()


@cache
def last_words() -> LastWords:
    """From now on the library, which speaks at every try, is heard here alone."""
    words = LastWords(logging.WARNING)
    OF_CALLERS.setLevel(logging.CRITICAL)
    LIBRARY.propagate = False
    LIBRARY.addHandler(words)
    return words


class Delivery:
    """What became of one kind of signal: counted always, told when it stops arriving, and when it goes on."""

    def __init__(self, signal: str, sent: Counter, lost: Counter) -> None:
        self._signal, self._words = signal, last_words()
        self._sent, self._lost = sent.labels(signal), lost.labels(signal)
        self.down = False

    def done(self, count: int, arrived: bool) -> None:
        """So many were sent, and arrived or did not."""
        if arrived:
            self._sent.inc(count)
        else:
            self._lost.inc(count)
        if arrived == self.down:
            self._tell(arrived)
        self.down = not arrived

    def lose(self, count: int) -> None:
        """So many were not even sent."""
        self._lost.inc(count)

    def _tell(self, arrived: bool) -> None:
        if arrived:
            log.info("%s arrive at the collector again", self._signal)
        else:
            fields = {"signal": self._signal, "problem": self._words.text}
            text = "the OTLP collector does not take what is sent; requests are served as before"
            log.warning(text, extra={"fields": fields})


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Of the queue, in spans; and the seconds after which a batch that is not full is sent."""

    waiting: int = 2048
    batch: int = 512
    seconds: float = 5.0


class Queue:
    """Calls on their way. `put` never waits; what finds no room is lost, and counted."""

    def __init__(
        self,
        export: Callable[[Sequence[Ended]], bool],
        delivery: Delivery,
        limits: QueueLimits = QueueLimits(),
    ) -> None:
        """`export` sends, and says whether it arrived; it is called in a thread of the queue's own."""
        self._export, self._delivery, self._limits = export, delivery, limits
        self._calls: deque[Ended] = deque()
        self._waiting, self._lock = 0, threading.Lock()
        self._wake, self._closing, self._given_up = threading.Event(), False, False
        self._thread = threading.Thread(target=self._run, name="otlp traces", daemon=True)
        self._thread.start()

    def put(self, make: Callable[[], Ended]) -> None:
        """Make one and add it, where there is room."""
        if self._waiting >= self._limits.waiting or self._closing:
            self._delivery.lose(1)
            return
        try:
            one = make()
        except Exception:
            log.exception("the trace of a call could not be made; it is lost")
            self._delivery.lose(1)
            return
        with self._lock:
            self._calls.append(one)
            self._waiting += one.size
        if self._waiting >= self._limits.batch:
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Send what waits; after so long it is given up."""
        end = time.monotonic() + seconds
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.0, end - time.monotonic()))
        self._given_up = True
        while batch := self._next():
            self._delivery.lose(sum(one.size for one in batch))

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._limits.seconds)
            self._wake.clear()
            self._send()
        self._send()

    def _send(self) -> None:
        while not self._given_up and (batch := self._next()):
            count = sum(one.size for one in batch)
            try:
                arrived = self._export(batch)
            except Exception:
                log.exception("spans could not be made or sent; they are lost")
                arrived = False
            self._delivery.done(count, arrived)

    def _next(self) -> list[Ended]:
        batch, size = [], 0
        with self._lock:
            while self._calls and size < self._limits.batch:
                batch.append(self._calls.popleft())
                size += batch[-1].size
            self._waiting -= size
        return batch
