"""Pieces of text to token ids, where only trusted pieces can produce control tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Any

from router.engine.text.chat_template import Piece

Encode = Callable[[str], list[int]]


class TextEncoder:
    """Encodes pieces as if they were one text, except that people's text names no control token.

    Control tokens are the special ones and those others that the chat template writes. The ones in
    trusted pieces are cut out first; the runs of text between them are encoded whole by a copy of
    the tokenizer that knows no special tokens. That copy is never changed, so threads may share it.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        added = dict(tokenizer.added_tokens_decoder)
        names = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        for token_id, token in added.items():
            if token.special or (token.content.strip() and token.content in template):
                names[token.content] = token_id
        self.control: dict[str, int] = names
        self._takes_left = {t.content for t in added.values() if t.lstrip}
        self._takes_right = {t.content for t in added.values() if t.rstrip}
        longest_first = sorted(names, key=len, reverse=True)
        self._find = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._first, self._later = _plain_encoders(tokenizer, names)

    def encode(self, pieces: Sequence[Piece], follows: bool = False) -> list[int]:
        """Ids of the pieces one after the other; `follows` says that other tokens come before them."""
        ids: list[int] = []
        for part in self._parts(pieces):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids.extend((self._later if ids or follows else self._first)(part))
        return ids

    def control_ids(self, text: str) -> list[int]:
        """The control tokens that a trusted text names, in order."""
        return [self.control[name] for name in self._find.findall(text)]

    def _parts(self, pieces: Sequence[Piece]) -> Iterator[str | int]:
        """Control tokens of trusted pieces, and the runs of text between them."""
        run, strip = "", False
        for piece in pieces:
            place = 0
            for found in self._find.finditer(piece.text) if piece.from_template else ():
                run += piece.text[place : found.start()]
                run = run.lstrip() if strip else run
                yield run.rstrip() if found[0] in self._takes_left else run
                yield self.control[found[0]]
                run, strip, place = "", found[0] in self._takes_right, found.end()
            run += piece.text[place:]
        yield run.lstrip() if strip else run


def _plain_encoders(tokenizer: Any, control: dict[str, int]) -> tuple[Encode, Encode]:
    """Encoders of text at the very beginning and of text after other tokens."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        encode = _slow_encoder(tokenizer, frozenset(control.values()) - {tokenizer.unk_token_id})
        return encode, encode
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["special"] = token["special"] or token["content"] in control
    first = _fast_encoder(spec, control, tokenizer.unk_token)
    later = _without_prefix(spec)
    return first, first if later == spec else _fast_encoder(later, control, tokenizer.unk_token)


def _fast_encoder(spec: Any, control: dict[str, int], unknown: str | None) -> Encode:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(json.dumps(spec))
    plain.encode_special_tokens = True  # that is: encode their names as text
    forbidden = frozenset(i for name, i in control.items() if name != unknown)
    unknown_id = control.get(unknown or "")

    def bad(token_id: int, text: str) -> bool:
        """Whether `text` may not give this token: unknown text may be unknown, its name may not."""
        return token_id in forbidden or (token_id == unknown_id and str(unknown) in text)

    def encode(text: str) -> list[int]:
        # A batch of one, since only batches let other threads run meanwhile.
        ids: list[int] = plain.encode_batch_fast([text], add_special_tokens=False)[0].ids
        fine = forbidden.isdisjoint(ids) and not (unknown_id in ids and str(unknown) in text)
        return ids if fine else spelt_out(text)

    def spelt_out(text: str) -> list[int]:
        """A vocabulary may hold a name as an ordinary word (Unigram does): that goes letter by letter."""
        safe: list[int] = []
        encoding = plain.encode_batch([text], add_special_tokens=False)[0]
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            span = text[start:end]
            if not bad(token_id, span):
                safe.append(token_id)
                continue
            for letter in plain.encode_batch(list(span), add_special_tokens=False):
                safe += [i for i in letter.ids if i not in forbidden]
        return safe

    return encode


def _slow_encoder(tokenizer: Any, forbidden: frozenset[int]) -> Encode:
    lock = Lock()  # tokenizers written in Python keep state while they work

    def encode(text: str) -> list[int]:
        with lock:
            ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [i for i in ids if i not in forbidden]

    return encode


def _without_prefix(spec: Any) -> Any:
    """The same tokenizer for text that is not at the beginning: SentencePiece's `first` scheme puts
    its word mark only there."""
    if isinstance(spec, dict):
        copy = {key: _without_prefix(value) for key, value in spec.items() if key != "vocab"}
        if "vocab" in spec:
            copy["vocab"] = spec["vocab"]
        if copy.get("prepend_scheme") == "first":
            copy["prepend_scheme"] = "never"
        return copy
    return [_without_prefix(value) for value in spec] if isinstance(spec, list) else spec
