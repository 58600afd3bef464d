"""From sampled tokens to text that may be sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Protocol

_INCOMPLETE = "\ufffd"
_MOST_HELD = 8  # tokens: four bytes of a character, and some that are no text by themselves


class Detokenizer:
    """Text of one answer. Special tokens are left out of it.

    The answer ends before the first stop string to be completed, wherever tokens begin and end.
    A stop string that is a special token's name stops at that token.
    """

    __slots__ = ("_held", "_min_tokens", "_pushed", "_special", "_stops", "_text", "stopped")

    def __init__(self, tokenizer: Any, stop: Sequence[str], min_tokens: int) -> None:
        """No stop string completed by the first `min_tokens` tokens ends the answer."""
        known = shared_vocabulary(tokenizer)
        self.stopped: str | None = None  # the stop string that ended the answer
        self._special = known.special
        self._text = known.start()
        self._stops = [_WordMatcher(s) for s in stop if s]
        self._held = ""  # the end of the text so far that may be the beginning of a stop string
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
            return self._release(text) if self._stops else text
        if self._may_stop and any(matcher.word == name for matcher in self._stops):
            text = self._release(self._text.flush()) + self._held
            self.stopped, self._held = self.stopped or name, ""
            return text
        return ""

    def flush(self) -> str:
        """The rest at the end of the answer; bytes of an unfinished character become one U+FFFD."""
        if self.stopped is not None:
            return ""
        text = self._release(self._text.flush())
        held, self._held = self._held, ""
        return text + held

    @property
    def _may_stop(self) -> bool:
        return self._pushed > self._min_tokens

    def _release(self, text: str) -> str:
        if not self._stops or not text:
            return text
        self._held += text
        for place, letter in enumerate(text, start=len(self._held) - len(text) + 1):
            complete = [m.word for m in self._stops if m.feed(letter)]
            if complete and self._may_stop:
                self.stopped = max(complete, key=len)
                text, self._held = self._held[: place - len(self.stopped)], ""
                return text
        keep = max(matcher.matched for matcher in self._stops)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
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
        self._texts: dict[int, str | None] = {}

    def start(self) -> TokenText:
        """A text with nothing in it."""
        return _ByteText(self) if self._byte_level else _WindowText(self.decode)

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens included."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def spell(self, token_id: int) -> str:
        """The text of one token alone, for people to read; part of a character is U+FFFD."""
        return self.decode([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary; none if it has no such token."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._look_up(token_id)
        return known

    def token_text(self, token_id: int) -> str | None:
        """The same as text; None if they are not whole characters."""
        if token_id not in self._texts:
            try:
                self._texts[token_id] = self.token_bytes(token_id).decode()
            except UnicodeDecodeError:
                self._texts[token_id] = None
        return self._texts[token_id]

    def _look_up(self, token_id: int) -> bytes:
        if token_id in self._verbatim:
            return self._verbatim[token_id].encode()
        letters = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        table = byte_letters()
        if all(letter in table for letter in letters):
            return bytes(table[letter] for letter in letters)
        return str(letters).encode()


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


class TokenText(Protocol):
    """Grows a text token by token, without ever splitting a character."""

    def push(self, token_id: int) -> str:
        """The text that became certain."""
        ...

    def flush(self) -> str:
        """The rest; bytes that never became a character are U+FFFD."""
        ...


class _ByteText:
    __slots__ = ("_decoder", "_vocabulary")

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder: codecs.IncrementalDecoder | None = None  # while a character is not whole

    def push(self, token_id: int) -> str:
        if self._decoder is None:
            text = self._vocabulary.token_text(token_id)
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
    """Keeps the last settled tokens as context, since a token's text can depend on what precedes it."""

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
        return self._decode(self._pending)  # invalid bytes undid the context: leave it as it was said
