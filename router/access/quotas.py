"""How much one client may ask for: calls at once, calls a minute, tokens a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from router.access.clients import Client
from router.errors import QuotaExceeded

MINUTE = 60.0
BUSY_SECONDS = 1.0  # when to try again where calls have to end first: nobody knows


class Bucket:
    """Fills up to `most` within a minute. What is in it may be taken at once."""

    def __init__(self, now: float) -> None:
        self._level, self._at, self._most = 0.0, now, 0

    def take(self, size: float, most: int, now: float) -> float:
        """Seconds until that much could be taken; 0 if it was. What is new of a bucket is full."""
        self._fill(most, now)
        if size > self._level:
            return (size - self._level) * MINUTE / most
        self._level -= size
        return 0.0

    def give(self, size: float) -> None:
        """Put back what was not used."""
        self._level = min(self._level + size, self._most)

    def _fill(self, most: int, now: float) -> None:
        grown = max(most - self._most, 0)
        self._level = min(self._level + grown + (now - self._at) * most / MINUTE, most)
        self._at, self._most = now, most


@dataclass(eq=False)
class _Used:
    """What a client uses."""

    calls: Bucket
    tokens: Bucket
    running: int = 0


class Quotas:
    """Counts for every client that has a quota; lives on one event loop."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._used: dict[str, _Used] = {}

    @contextmanager
    def call(self, client: Client) -> Iterator[Meter | None]:
        """One call of the client; tokens that were reserved and not used are given back at its end.

        None for a client without quotas. Raises QuotaExceeded.
        """
        if not (client.max_concurrent or client.requests_per_minute or client.tokens_per_minute):
            yield None
            return
        now = self._now()
        used = self._used.setdefault(client.id, _Used(Bucket(now), Bucket(now)))
        if client.max_concurrent and used.running >= client.max_concurrent:
            text = f"{client.max_concurrent} calls of {client.id} are running"
            raise QuotaExceeded(text, "max_concurrent", BUSY_SECONDS)
        if client.requests_per_minute and (wait := used.calls.take(1, client.requests_per_minute, now)):
            text = f"{client.id} may make {client.requests_per_minute} calls a minute"
            raise QuotaExceeded(text, "requests_per_minute", wait)
        used.running += 1
        meter = Meter(client, used.tokens, self._now)
        try:
            yield meter
        finally:
            used.running -= 1
            meter.settle()


class Meter:
    """The tokens of one call."""

    def __init__(self, client: Client, bucket: Bucket, now: Callable[[], float]) -> None:
        self._client, self._bucket, self._now = client, bucket, now
        self._reserved = self.used = 0

    def reserve(self, prompt: int, answer: int) -> None:
        """Take what the answer may cost, instead of what was taken before. Raises QuotaExceeded.

        The prompt counts as used from now on.
        """
        self.used = 0
        self.settle()
        most, size = self._client.tokens_per_minute, prompt + answer
        if not most:
            return
        if size > most:
            text = f"prompt and max_tokens need {size} tokens, {self._client.id} has {most} a minute"
            raise QuotaExceeded(text, "tokens_per_minute", None)
        if wait := self._bucket.take(size, most, self._now()):
            text = f"{self._client.id} has {most} tokens a minute, and {size} are asked for"
            raise QuotaExceeded(text, "tokens_per_minute", wait)
        self._reserved, self.used = size, prompt

    def settle(self) -> None:
        """Give back what was not used."""
        self._bucket.give(max(self._reserved - self.used, 0))
        self._reserved = 0
