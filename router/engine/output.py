"""Output processing: from a sampled token to text, and from the engine's thread to the caller's event loop.

Text is sent as soon as it is certain: whole characters, and nothing of a stop string. One hand-over a step
brings the events of all rows to their event loops.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
import os
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from router.engine.base import Delta, Finished
from router.errors import DeadlineExceeded, RouterError, Unavailable
from router.types import FinishReason, TokenLogprob

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


log = logging.getLogger(__name__)

_INCOMPLETE = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # a byte, in vocabularies of SentencePiece
_MOST_HELD = 8  # tokens: four bytes of a character, and some that are no text by themselves


class Detokenizer:
    """Text of one answer. Special tokens are left out of it.

    The answer ends before the first stop string to be completed, wherever tokens begin and end.
    A stop string that is a special token's name stops at that token.
    """

    __slots__ = ("_min_tokens", "_pushed", "_special", "_stops", "_text", "stopped")

    def __init__(self, tokenizer: Any, stop: Sequence[str], min_tokens: int) -> None:
        """No stop string completed by the first `min_tokens` tokens ends the answer."""
        known = shared_vocabulary(tokenizer)
        self.stopped: str | None = None  # the stop string that ended the answer
        self._special = known.special
        self._text = known.start()
        self._stops = StopStrings(stop) if any(stop) else None
        self._min_tokens = min_tokens
        self._pushed = 0

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that became certain, nothing after the end."""
        if self.stopped is not None:
            return ""
        self._pushed += 1
        name = self._special.get(token_id)
        if name is None:
            text = self._text.push(token_id)
            return text if self._stops is None else self._released(self._stops, text)
        if self._stops is not None and name in self._stops.words and self._pushed > self._min_tokens:
            text = self._released(self._stops, self._text.flush()) + self._stops.rest()
            self.stopped = self.stopped or name
            return text
        return ""

    def flush(self) -> str:
        """The rest at the end of the answer; bytes of an unfinished character become one U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._text.flush()
        return text if self._stops is None else self._released(self._stops, text) + self._stops.rest()

    def _released(self, stops: StopStrings, text: str) -> str:
        text = stops.push(text, may_stop=self._pushed > self._min_tokens)
        self.stopped = stops.found or None
        return text


class StopStrings:
    """Ends a text before the first stop string to be completed; of several at once, the longest.

    It holds back the end of the text that may be the beginning of one.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = frozenset(filter(None, words))
        self.found = ""  # the one that ended the text
        self._matchers = [_WordMatcher(word) for word in self.words]
        self._held = ""

    def push(self, text: str, *, may_stop: bool = True) -> str:
        """Add to the text; returns what is certain to be shown. Nothing ends it unless it `may_stop`."""
        if not self._matchers or not text:
            return text
        self._held += text
        for place, letter in enumerate(text, start=len(self._held) - len(text) + 1):
            complete = [matcher.word for matcher in self._matchers if matcher.feed(letter)]
            if complete and may_stop:
                self.found = max(complete, key=len)
                text, self._held = self._held[: place - len(self.found)], ""
                return text
        cut = len(self._held) - max(matcher.matched for matcher in self._matchers)
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        text, self._held = self._held, ""
        return text


class _WordMatcher:
    """Finds one word in a stream of letters (Knuth, Morris and Pratt 1977): constant time per letter.

    `matched` is the length of the longest beginning of the word that the stream now ends with.
    """

    def __init__(self, word: str) -> None:
        self.word = word
        self.matched = 0
        self._shorter = [0]  # after k+1 letters matched: the next shorter beginning that also fits
        for letter in word[1:]:
            self._shorter.append(self._next(self._shorter[-1], letter))

    def feed(self, letter: str) -> bool:
        """Take one letter; True if it completes the word, which may then begin anew."""
        self.matched = self._next(self.matched, letter)
        if self.matched < len(self.word):
            return False
        self.matched = self._shorter[-1]
        return True

    def _next(self, matched: int, letter: str) -> int:
        while matched and self.word[matched] != letter:
            matched = self._shorter[matched - 1]
        return matched + (self.word[matched] == letter)


@lru_cache(maxsize=4)
def shared_vocabulary(tokenizer: Any) -> Vocabulary:
    """The shared vocabulary of a tokenizer."""
    return Vocabulary(tokenizer)


class Vocabulary:
    """What detokenising needs to know of a tokenizer; made once, shared by all requests.

    Byte-level vocabularies (GPT-2, Llama 3, Qwen, SmolLM) go through an incremental UTF-8 decoder;
    all others (SentencePiece, WordPiece, tokenizers written in Python) through a small window that is
    decoded twice and compared, as text-generation servers do.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.special = {i: token.content for i, token in added.items() if token.special}
        self.special.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        self._verbatim: dict[int, str] = {i: token.content for i, token in added.items()}
        self._byte_level = _is_byte_level(tokenizer)
        self._bytes: dict[int, bytes] = {}
        self.texts = _TokenTexts(self.token_bytes)  # of a byte-level vocabulary

    def start(self) -> _ByteText | _WindowText:
        """A text with nothing in it."""
        return _ByteText(self) if self._byte_level else _WindowText(self.decode)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def spell(self, token_id: int) -> str:
        """The text of one token alone, for people to read; part of a character is U+FFFD."""
        return self.decode([token_id])

    def logprob(self, token: int, value: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
        """The log-probability of a token and of the likeliest in its place, with their texts."""
        spelt = tuple((self.spell(other), other, logprob) for other, logprob in top)
        text = self.spell(token)
        parts = tuple(self._part(spelling, other) for spelling, other, _ in spelt)
        return TokenLogprob(text, token, value, spelt, self._part(text, token), parts if any(parts) else ())

    def _part(self, text: str, token_id: int) -> bytes:
        """The bytes of a token that is part of a character; none if its text has all of them."""
        if _INCOMPLETE not in text:
            return b""
        if self._byte_level:
            return self.token_bytes(token_id)
        byte = _BYTE_TOKEN.fullmatch(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        return bytes.fromhex(byte[1]) if byte else b""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary; none if it has no such token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._verbatim:
            return self._verbatim[token_id].encode()
        letters = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        table = byte_letters()
        if all(letter in table for letter in letters):
            return bytes(table[letter] for letter in letters)
        return str(letters).encode()


class _TokenTexts(dict[int, str | None]):
    """The text of each token that was seen; None where its bytes are not whole characters."""

    def __init__(self, spell: Callable[[int], bytes]) -> None:
        self._spell = spell

    def __missing__(self, token_id: int) -> str | None:
        try:
            text = self[token_id] = self._spell(token_id).decode()
        except UnicodeDecodeError:
            self[token_id] = None
            return None
        return text


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__())
    return bool(decoder["type"] == "ByteLevel")


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """The printable letter that byte-level vocabularies write for each byte (Radford et al. 2019)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    letters = {chr(byte): byte for byte in shown}
    letters.update({chr(0x100 + place): byte for place, byte in enumerate(hidden)})
    return letters


class _ByteText:
    """Grows a text token by token, without ever splitting a character."""

    __slots__ = ("_decoder", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder: codecs.IncrementalDecoder | None = None  # while a character is not whole

    def push(self, token_id: int) -> str:
        if self._decoder is None:
            text = self._vocabulary.texts[token_id]
            if text is not None:
                return text
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(self._vocabulary.token_bytes(token_id))
        begun, _ = self._decoder.getstate()
        if not begun:
            self._decoder = None
        return text

    def flush(self) -> str:
        decoder, self._decoder = self._decoder, None
        return "" if decoder is None else decoder.decode(b"", final=True)


class _WindowText:
    """The same with the last settled tokens as context: a token's text can depend on what precedes it."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._new_text()
        unsettled = not text or text.endswith(_INCOMPLETE)
        if unsettled and len(self._pending) < _MOST_HELD:
            return ""
        self._context, self._pending = self._pending, []
        self._context_text = self._decode(self._context)
        return text

    def flush(self) -> str:
        text = self._new_text() if self._pending else ""
        self._pending = []
        bare = text.rstrip(_INCOMPLETE)
        return bare + _INCOMPLETE if len(bare) < len(text) else text

    def _new_text(self) -> str:
        whole = self._decode(self._context + self._pending)
        if whole.startswith(self._context_text):
            return whole[len(self._context_text) :]
        return self._decode(self._pending)  # invalid bytes undid the context: leave it as it was sent


class TokenOutput(NamedTuple):
    """What became certain of an answer, and why it ends, if it does.

    `by_token`: its last token ended it, and is no part of the text.
    """

    text: str = ""
    reason: FinishReason | None = None
    by_token: bool = False


# -- From the engine's thread to the event loops: one hand-over a step for all rows.


@dataclass(frozen=True, slots=True)
class PoolingResult:
    """What a pooling request computed."""

    values: NDArray[np.float32]


Event = Delta | PoolingResult | Finished | RouterError


class EventStream:
    """The receiving end of one job. Lives on the event loop it was made on."""

    def __init__(self, cancel: Callable[[EventStream], None], ended: Callable[[EventStream], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._events: deque[Delta | Finished | RouterError] = deque()
        self._awaited: asyncio.Future[None] | None = None  # by who waits for `_least` events
        self._least = 1
        self._cancel = cancel
        self._on_end = ended
        self.ended = False

    def cancel(self) -> None:
        """Ask the engine to drop the job; idempotent."""
        if not self.ended:
            self._cancel(self)

    def put(self, event: Event) -> None:
        """Called on the event loop."""
        if isinstance(event, PoolingResult):
            raise TypeError("a generation got the values of a pooling request")
        self._events.append(event)
        if not isinstance(event, Delta):
            self.ended = True
            self._on_end(self)
        if self._awaited is not None and (self.ended or len(self._events) >= self._least):
            self._wake()

    async def wait(self, least: int) -> None:
        """Return when `least` events are there, or the last one or an error."""
        while len(self._events) < least and not self.ended:
            self._least = least
            self._awaited = self.loop.create_future()
            await self._awaited

    def ready(self) -> list[Delta | Finished]:
        """Take the events that are there. An error is raised once those before it are taken."""
        found: list[Delta | Finished] = []
        events = self._events
        while events:
            event = events[0]
            if isinstance(event, RouterError):
                if not found:
                    raise event
                break
            found.append(event)
            events.popleft()
        return found

    async def __aiter__(self) -> AsyncIterator[Delta | Finished]:
        """Deltas, then one Finished; leaving early cancels."""
        try:
            while True:
                await self.wait(1)
                for event in self.ready():
                    yield event
                if self.ended and not self._events:
                    return
        finally:
            self.cancel()

    def _wake(self) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited.done():
            awaited.set_result(None)


class PendingPooling:
    """The receiving end of one pooling request. Lives on the event loop it was made on."""

    def __init__(
        self, cancel: Callable[[PendingPooling], None], ended: Callable[[PendingPooling], None]
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._future: asyncio.Future[NDArray[np.float32]] = self.loop.create_future()
        self._cancel, self._on_end = cancel, ended

    def put(self, event: Event) -> None:
        """Called on the event loop, once."""
        self._on_end(self)
        if self._future.done():
            return
        if isinstance(event, PoolingResult):
            self._future.set_result(event.values)
        else:
            self._future.set_exception(_refusal(event))

    async def wait(self) -> NDArray[np.float32]:
        """What was read; leaving early cancels. Raises DeadlineExceeded, EngineFailed, Unavailable."""
        try:
            return await self._future
        except asyncio.CancelledError:
            self._cancel(self)
            raise


def _refusal(event: Event) -> RouterError:
    if isinstance(event, RouterError):
        return event
    if isinstance(event, Finished) and event.reason is FinishReason.DEADLINE:
        return DeadlineExceeded("not read in time")
    return Unavailable("the engine has stopped")


Receiver = EventStream | PendingPooling


Events = list[tuple[Receiver, Event]]


class EventDispatcher:
    """Brings events to their event loops, in order, by a thread of its own.

    A thread that wakes an event loop loses the interpreter to it until that has done its work, and the loop
    may take the processor that woke it. The engine's thread puts events down and goes on; they are taken to
    their loops as soon as it computes, or has nothing to do.
    """

    def __init__(self, ring: Callable[[int], None] | None = None) -> None:
        """`ring`: have an eventfd written to once the next step computes. Without it the thread is woken by
        what is sent, and waits for the interpreter."""
        self._batches: SimpleQueue[Events | None] = SimpleQueue()
        self._ring, self._bell = ring, -1 if ring is None else os.eventfd(0, os.EFD_CLOEXEC)
        self._waits = False  # something that was sent for the next step
        self._thread = Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def send(self, events: Events) -> None:
        """Have them delivered, after those before them: in the next step, or with `flush`."""
        if events:
            self._batches.put(events)
            if self._ring is not None:
                self._ring(self._bell)
                self._waits = True

    def flush(self) -> None:
        """No step follows: deliver what was sent."""
        if self._waits:
            self._waits = False
            os.eventfd_write(self._bell, 1)

    def close(self) -> None:
        """Deliver what there is, and end the thread."""
        self._batches.put(None)
        self._waits = self._ring is not None
        self.flush()
        self._thread.join()
        if self._ring is not None:
            os.close(self._bell)

    def _run(self) -> None:
        while (events := self._next()) is not None:
            try:
                deliver(events)
            except Exception:
                log.exception("events cannot be delivered")

    def _next(self) -> Events | None:
        while self._ring is not None and self._batches.empty():
            os.eventfd_read(self._bell)
        return self._batches.get()


def deliver(events: Iterable[tuple[Receiver, Event]]) -> None:
    """One wake-up for each event loop, however many rows."""
    by_loop: dict[asyncio.AbstractEventLoop, Events] = defaultdict(list)
    for stream, event in events:
        by_loop[stream.loop].append((stream, event))
    for loop, batch in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put_all, batch)


def _put_all(batch: Events) -> None:
    for stream, event in batch:
        stream.put(event)
