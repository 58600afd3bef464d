"""From sampled tokens to text that may be sent: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from router.engine.text.token_text import vocabulary


class Detokenizer:
    """Text of one answer. Special tokens are left out of it.

    The answer ends before the first stop string to be completed, wherever tokens begin and end.
    A stop string that is a special token's name stops at that token.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_tokens: int = 0) -> None:
        """No stop string completed by the first `min_tokens` tokens ends the answer."""
        words = vocabulary(tokenizer)
        self.stopped: str | None = None  # the stop string that ended the answer
        self._special = words.special
        self._text = words.start()
        self._stops = [_Matcher(s) for s in stop if s]
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
            return self._release(self._text.push(token_id))
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


class _Matcher:
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
