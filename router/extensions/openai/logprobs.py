"""Log-probabilities of tokens as OpenAI's answers have them. A token may be part of a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

from router.v1 import inference_pb2 as pb

Token = pb.TokenLogprob | pb.TokenLogprob.Alternative


def bytes_of(one: Token) -> bytes:
    """The token's own bytes."""
    return one.bytes or one.token.encode()


def chat_logprobs(entries: Iterable[pb.TokenLogprob], top: int) -> dict[str, Any]:
    """As chat completions have them."""

    def entry(one: Token) -> dict[str, Any]:
        return {"token": one.token, "logprob": one.logprob, "bytes": list(bytes_of(one))}

    content = [entry(one) | {"top_logprobs": [entry(t) for t in one.top[:top]]} for one in entries]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """As plain completions have them, for one answer that may come in pieces. Offsets count characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def of(self, entries: Sequence[pb.TokenLogprob]) -> dict[str, Any]:
        """The next tokens of the answer."""
        offsets = []
        for one in entries:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(bytes_of(one)))
        return {
            "tokens": [spelling(one) for one in entries],
            "token_logprobs": [one.logprob for one in entries],
            "top_logprobs": [{spelling(t): t.logprob for t in one.top} for one in entries],
            "text_offset": offsets,
        }


def spelling(one: Token) -> str:
    r"""The token as text; one that is part of a character by its bytes, as in `bytes:\xf0\x9f`."""
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.bytes) if one.bytes else one.token
