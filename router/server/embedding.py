"""Embeddings: unit vectors of whole texts, by the sentence encoder or by the base.

Answers go first. One thread reads texts in parts, in turn for tenants and requests, and rests between parts
while answers run. The base reads in the background of the engine, and a few texts at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from router.engine.base import Ability, Engine, PoolingRequest, Prompt
from router.errors import (
    AdapterNotFound,
    ConfigError,
    FieldViolation,
    InvalidRequest,
    NotFound,
    PromptTooLong,
)
from router.names import BASE
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
READ_AT_ONCE = 16  # texts that the base reads, of all requests
REST, LONGEST_REST = 1.0, 1.0  # times the seconds of a part, while answers run; seconds
LOOK_SECONDS = 0.05  # in a rest
MOST_TEXTS = {ENCODER: 2048, BASE: 256}  # of one request; a base has longer vectors
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Embedded:
    """Unit vectors, float32 [texts, size], and how many tokens the texts have. `maker` names what read them:
    vectors of different makers cannot be compared."""

    rows: Rows
    tokens: int
    maker: str


class NoSuchEncoder(AdapterNotFound):
    """The model gives no embeddings here."""

    def __init__(self, name: str, why: str) -> None:
        NotFound.__init__(self, "model", name, f" for embeddings: {why}")


class TextTooLong(InvalidRequest):
    """Texts have more tokens than are read at once. Nothing is ever cut in silence."""

    reason = PromptTooLong.reason


class Embedding:
    """Embeddings of a server. Lives on one event loop."""

    def __init__(self, engine: Engine, encoder: TextEncoder | None = None) -> None:
        self._engine, self._encoder = engine, encoder
        self._pool = TextPool(1, "embed", MOST_WAITING)
        self._reading = asyncio.Semaphore(READ_AT_ONCE)
        self._rest = 0.0  # seconds that the thread owes

    def close(self) -> None:
        """Let the thread go; what waits is cancelled."""
        self._pool.close()

    async def embed(self, model: str, texts: Sequence[str], call: Call) -> Embedded:
        """Vectors by `encoder` or `base`, in the order of `texts`.

        Raises NoSuchEncoder, TextTooLong, Overloaded, QuotaExceeded, DeadlineExceeded, and what the engine
        raises.
        """
        if model not in MOST_TEXTS:
            raise NoSuchEncoder(model, f"must be {' or '.join(MOST_TEXTS)}")
        if len(texts) > MOST_TEXTS[model]:
            text = f"must have at most {MOST_TEXTS[model]} texts for the model {model}, got {len(texts)}"
            raise InvalidRequest([FieldViolation("input", text)])
        return await (self._by_base if model == BASE else self._by_encoder)(texts, call)

    async def _by_encoder(self, texts: Sequence[str], call: Call) -> Embedded:
        import numpy as np

        encoder = self._encoder
        if encoder is None:
            raise NoSuchEncoder(ENCODER, "this server has none")
        try:
            await self._run(partial(load, encoder), 0, call)
        except ConfigError as error:
            how = "an operator gets it with `lora-router models fetch`"
            raise NoSuchEncoder(ENCODER, f"{error}; {how}") from None
        check_characters(texts, CHARACTERS * encoder.longest)
        tokens: list[Any] = []
        for piece in pieces(texts):
            tokens += await self._run(partial(counted, encoder, piece), sum(map(len, piece)), call)
        check_lengths(tokens, encoder.longest)
        total = self._taken(tokens, call)
        rows = np.empty((len(texts), encoder.size), np.float32)
        for part in parts([len(row) for row in tokens]):
            some = [tokens[i].tolist() for i in part]
            rows[part] = await self._run(partial(read, encoder, some), sum(map(len, some)), call)
        return Embedded(rows, total, encoder.name)

    async def _by_base(self, texts: Sequence[str], call: Call) -> Embedded:
        import numpy as np

        info = self._engine.info
        if Ability.HIDDEN_STATES not in info.abilities:
            raise NoSuchEncoder(BASE, f"this engine gives no {Ability.HIDDEN_STATES}")
        check_characters(texts, CHARACTERS * info.context_length)
        tokens: list[Any] = []
        for i, text in enumerate(texts):
            tokens += await self._run(partial(self._tokens, i, text), len(text), call)
        total, rows = self._taken(tokens, call), list[Any]()
        for start in range(0, len(tokens), READ_AT_ONCE):
            some = tokens[start : start + READ_AT_ONCE]
            reading = [asyncio.ensure_future(self._read(one, call)) for one in some]
            try:
                rows += await asyncio.gather(*reading)
            finally:
                for one in reading:  # where another failed
                    one.cancel()
        return Embedded(np.stack(rows), total, info.served_digest)

    def _tokens(self, index: int, text: str, check: Check) -> list[Any]:
        limit = self._engine.info.context_length
        try:
            return packed([self._engine.encode(Prompt(raw=text), limit, check)])
        except PromptTooLong as error:
            count = f"at least {error.got}" if error.at_least else f"{error.got}"
            raise too_long({index: f"has {count} tokens, and one text may have {limit}"}) from None

    async def _read(self, tokens: Any, call: Call) -> Rows:
        """The mean of the last hidden states, as a unit vector."""
        import numpy as np

        async with self._reading:
            request = PoolingRequest(tokens.tolist(), depth=1.0, deadline=call.deadline, background=True)
            mean = await self._engine.read(request)
        unit: Rows = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return unit

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
    """The tokens of each text."""
    return packed(encoder.tokens(texts))


def read(encoder: TextEncoder, tokens: Sequence[Sequence[int]], check: Check) -> Rows:
    """Vectors of a part."""
    return encoder.vectors(tokens)


def packed(tokens: Sequence[Sequence[int]]) -> list[Any]:
    """Each row as an array of int32, a seventh of the memory."""
    import numpy as np

    return [np.asarray(row, np.int32) for row in tokens]


def check_characters(texts: Sequence[str], most: int) -> None:
    """Raises TextTooLong for texts that are not read, since they have more than `most` characters."""
    lengths = {i: len(text) for i, text in enumerate(texts) if len(text) > most}
    if lengths:
        limit = f"and one text may have {most}"
        raise too_long({i: f"has {n} characters, {limit}" for i, n in lengths.items()})


def check_lengths(tokens: Sequence[Any], most: int) -> None:
    """Raises TextTooLong for texts with more than `most` tokens."""
    lengths = {i: len(row) for i, row in enumerate(tokens) if len(row) > most}
    if lengths:
        limit = f"and one text may have {most}"
        raise too_long({i: f"has {n} tokens, {limit}" for i, n in lengths.items()})


def too_long(found: Mapping[int, str]) -> TextTooLong:
    """The error for texts by their places."""
    return TextTooLong([FieldViolation(f"input[{i}]", text) for i, text in found.items()])


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
