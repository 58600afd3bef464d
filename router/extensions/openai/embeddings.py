"""OpenAI's embeddings: requests, answers and their route.

Source: https://platform.openai.com/docs/api-reference/embeddings/create.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator

from router.errors import FieldViolation, InvalidRequest
from router.extensions.openai import errors
from router.extensions.openai.fields import FieldRules, JsonModel, parsed
from router.server.embedding import MOST_TEXTS, Embedded, Embedding
from router.server.http import HttpCall, Reply, Route
from router.server.policy import EMBED, Policy

NO_TOKENS = "token ids are not accepted, since each model has its own: send text"
NO_UNIT = "embeddings take no part in experiments"
ROWS: Mapping[str, Policy] = {"POST /v1/embeddings": EMBED}


def texts_of(value: Any) -> Sequence[str]:
    """The texts of a request. Raises ValueError, with a text for the caller."""
    texts = value if isinstance(value, list) else [value]
    if not 1 <= len(texts) <= MOST_TEXTS:
        raise ValueError(f"must have 1 to {MOST_TEXTS} texts, got {len(texts)}")
    for place, text in enumerate(texts):
        if isinstance(text, int | list):
            raise ValueError(NO_TOKENS)
        if not isinstance(text, str) or not text.strip():
            where = f"[{place}] " if isinstance(value, list) else ""
            raise ValueError(f"{where}must be a text that is not empty")
    return texts


class EmbeddingBody(JsonModel):
    """POST /v1/embeddings."""

    rules: ClassVar[FieldRules] = FieldRules(dict.fromkeys(("user", "safety_identifier"), NO_UNIT))

    input: Annotated[Any, PlainValidator(texts_of)]
    model: str
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def routes(embedding: Embedding) -> Sequence[Route]:
    """The one."""
    decode = partial(parsed, EmbeddingBody)
    return (Route("POST", "/v1/embeddings", partial(embed, embedding), decode, errors.error_json),)


async def embed(embedding: Embedding, body: EmbeddingBody, call: HttpCall) -> Reply:
    """The vectors of the texts."""
    found = await embedding.embed(body.model, body.input, call)
    size = found.rows.shape[1]
    if body.dimensions not in (None, size):
        text = f"must be {size}, which is what vectors of this model have, or absent"
        raise InvalidRequest([FieldViolation("dimensions", text)])
    return Reply(await asyncio.to_thread(answer_json, body, found))


def answer_json(body: EmbeddingBody, found: Embedded) -> bytes:
    """The answer. Written vector by vector, so that no step holds the interpreter's lock for long."""
    shown = in_base64 if body.encoding_format == "base64" else in_numbers
    data = ", ".join(
        f'{{"object": "embedding", "index": {i}, "embedding": {shown(row)}}}'
        for i, row in enumerate(found.rows)
    )
    more = {
        "model": body.model,
        "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens},
        "system_fingerprint": found.maker,
    }
    return f'{{"object": "list", "data": [{data}], {json.dumps(more)[1:]}'.encode()


def in_base64(row: Any) -> str:
    """A vector as JSON: the bytes of its numbers, float32, the least significant byte first."""
    return f'"{base64.b64encode(row.astype("<f4").tobytes()).decode()}"'


def in_numbers(row: Any) -> str:
    """A vector as JSON: numbers with as many digits as float32 has."""
    return f"[{', '.join(f'{number:.9g}' for number in row.tolist())}]"
