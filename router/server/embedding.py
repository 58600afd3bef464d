"""Embeddings: unit vectors of whole texts, by the sentence encoder.

Answers go first. One thread reads texts in parts, in turn for tenants and requests, and rests between parts
while answers run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from router.engine.base import Engine
from router.errors import (
    AdapterNotFound,
    ConfigError,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PromptTooLong,
)
from router.ports import TextEncoder
from router.server.call import Call
from router.server.encoding import MOST_WAITING, Check, TextPool
from router.types import Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Rows = NDArray[np.float32]

ENCODER = "encoder"  # the name of the sentence encoder among models
CHARACTERS = 64  # that a token has at most, on average: a longer text is refused unread
PIECE = 1 << 16  # characters whose tokens are counted in one part
PART_TEXTS, PART_TOKENS = 32, 2048  # that the encoder reads in one part
REST, LONGEST_REST = 1.0, 1.0  # times the seconds of a part, while answers run; seconds
LOOK_SECONDS = 0.05  # in a rest
MOST_TEXTS = 2048  # of one request
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit vectors, float32 [texts, size], and how many tokens the texts have. `maker` names the encoder:
    vectors of different ones cannot be compared."""

    rows: Rows
    tokens: int
    maker: str


class NoSuchEncoder(AdapterNotFound):
    """The model gives no embeddings here."""

    def __init__(self, name: str, why: str) -> None:
        NotFound.__init__(self, "model", name, f" for embeddings: {why}")


class TextTooLong(InvalidRequest):
    """Texts have more tokens than are read at once."""

    reason = PromptTooLong.reason


class Embedding:
    """Embeddings of a server. Lives on one event loop."""

    def __init__(self, engine: Engine, encoder: TextEncoder | None = None) -> None:
        self._engine, self._encoder = engine, encoder
        self._pool = TextPool(1, "embed", MOST_WAITING)
        self._rest = 0.0  # seconds that the thread owes

    def close(self) -> None:
        """Let the thread go; what waits is cancelled."""
        self._pool.close()

    async def embed(self, model: str, texts: Sequence[str], call: Call) -> Embedded:
        """Vectors by the model `encoder`, in the order of `texts`.

        Raises NoSuchEncoder, TextTooLong, Overloaded, QuotaExceeded, DeadlineExceeded.
        """
        import numpy as np

        if model != ENCODER:
            raise NoSuchEncoder(model, f"must be {ENCODER}")
        encoder = self._encoder
        if encoder is None:
            raise NoSuchEncoder(ENCODER, "this server has none")
        try:
            await self._run(partial(load, encoder), 0, call)
        except ConfigError as error:
            how = "an operator gets it with `lora-router models fetch`"
            raise NoSuchEncoder(ENCODER, f"{error}; {how}") from None
        check(map(len, texts), CHARACTERS * encoder.longest, "characters")
        tokens: list[Any] = []
        for piece in pieces(texts):
            tokens += await self._run(partial(counted, encoder, piece), sum(map(len, piece)), call)
        check(map(len, tokens), encoder.longest, "tokens")
        total = self._taken(tokens, call)
        rows = np.empty((len(texts), encoder.size), np.float32)
        for part in parts([len(row) for row in tokens]):
            some = [tokens[i].tolist() for i in part]
            rows[part] = await self._run(partial(read, encoder, some), sum(map(len, some)), call)
        return Embedded(rows, total, encoder.name)

    def _taken(self, tokens: Sequence[Any], call: Call) -> int:
        """How many there are: they are taken from the caller's quota. Raises QuotaExceeded."""
        total = sum(map(len, tokens))
        if call.meter is not None:
            call.meter.reserve(total, 0)
        call.answer.usage = Usage(prompt_tokens=total)
        return total

    async def _run(self, work: Callable[[Check], T], size: int, call: Call) -> T:
        """In the thread, after the rest that the part before has earned."""
        answers = self._engine.status().running > 0

        def rested(check: Check) -> T:
            self._pause(check)
            began = time.monotonic()
            try:
                return work(check)
            finally:
                took = time.monotonic() - began
                self._rest = min(REST * took, LONGEST_REST) if answers else 0.0

        return await self._pool.run(rested, size, call.deadline, call.client.tenant)

    def _pause(self, check: Check) -> None:
        until = time.monotonic() + self._rest
        while (left := until - time.monotonic()) > 0:
            check()
            time.sleep(min(left, LOOK_SECONDS))


# -- Work for the thread; `check` raises where nothing more is wanted.


def load(encoder: TextEncoder, check: Check) -> None:
    """Load the encoder, unless it is loaded."""
    encoder.load()


def counted(encoder: TextEncoder, texts: Sequence[str], check: Check) -> list[Any]:
    """The tokens of each text, as an array of int32: a seventh of the memory."""
    import numpy as np

    return [np.asarray(row, np.int32) for row in encoder.tokens(texts)]


def read(encoder: TextEncoder, tokens: Sequence[Sequence[int]], check: Check) -> Rows:
    """Vectors of a part."""
    return encoder.vectors(tokens)


def check(lengths: Iterable[int], most: int, what: str) -> None:
    """Raises TextTooLong that names the texts with more than `most`: nothing is ever cut in silence."""
    text = f"has {{}} {what}, and one text may have {most}"
    found = [FieldViolation(f"input[{i}]", text.format(n)) for i, n in enumerate(lengths) if n > most]
    if found:
        raise TextTooLong(found)


def pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in their order, some 65,000 characters at a time."""
    start = size = 0
    for i, text in enumerate(texts):
        if size and size + len(text) > PIECE:
            yield texts[start:i]
            start, size = i, 0
        size += len(text)
    yield texts[start:]


def parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts that are read together: of like length, since short ones are padded to the longest."""
    part: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if part and (len(part) == PART_TEXTS or (len(part) + 1) * lengths[place] > PART_TOKENS):
            yield part
            part = []
        part.append(place)
    if part:
        yield part
