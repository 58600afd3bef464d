"""Bodies of requests, up to 2 MiB: what each door makes of them and of their errors.

All of it is done before a service is asked, in `slowest ms` of the table: a large body is counted and decoded
in a thread, the rest on the event loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from router.errors import MOST_FINDINGS, InvalidRequest, RouterError
from router.extensions.console.site import count_form
from router.extensions.console.site import parsed as parsed_form
from router.extensions.kserve import tensors
from router.extensions.ofrep import flags as ofrep
from router.extensions.openai import embeddings, fields, requests, responses, routes
from router.kserve import open_inference_pb2 as oip
from router.server.bodies import Decoder, decoder_of, json_decoder
from router.server.grpc_adapter import status_of
from router.server.requests import RequestLimits, generate_request
from router.v1 import experiments_pb2, fleet_pb2
from router.v1 import inference_pb2 as pb
from tests.fuzz.inputs import TEXTS, Change, bytes_changed, json_changed, message_changed

LIMITS = RequestLimits(1 << 20, 4096)
MOST_BYTES = 2 << 20  # `max_body_bytes`
ENTRIES = (b"{}", b"[]", b'""', b"0", b"null", b'{"a":1}', b"[[]]", b'"\\u0000"', b"1e400", b" ")
KINDS: tuple[type[Message], ...] = (
    *(pb.GenerateRequest, pb.RouteRequest, oip.ModelInferRequest, fleet_pb2.DrainReplicaRequest),
    *(experiments_pb2.CreateExperimentRequest, experiments_pb2.UpdateExperimentRequest),
    experiments_pb2.RecordOutcomesRequest,
)


def told(run: Callable[[], object]) -> None:
    """Do it; an error is small, whatever the body was, and made into a status."""
    try:
        run()
    except RouterError as error:
        _check(error)
        raise


def _check(error: RouterError) -> None:
    size = sum(len(key) + len(value) for key, value in status_of(error, "id").trailers)
    assert size < 8192, "more than gRPC sends"
    assert len(getattr(error, "violations", ())) <= MOST_FINDINGS + 1, "errors without number"


def _made(decoder: Decoder, data: bytes) -> Any:
    return decoder(data)[0]


def chat(data: bytes) -> None:
    """POST /v1/chat/completions."""
    _completion(requests.ChatCompletion, data)


def completion(data: bytes) -> None:
    """POST /v1/completions."""
    _completion(requests.Completion, data)


def _completion(kind: type[requests.ChatCompletion | requests.Completion], data: bytes) -> None:
    def run() -> None:
        parsed = _made(json_decoder(partial(fields.parsed, kind)), data)
        generate_request(requests.generate_message(parsed, ""), "id", LIMITS)

    told(run)


def response(data: bytes) -> None:
    """POST /v1/responses."""

    def run() -> None:
        _, chat = _made(json_decoder(responses.parsed_response), data)
        generate_request(requests.generate_message(chat, ""), "id", LIMITS)

    told(run)


def embedding(data: bytes) -> None:
    """POST /v1/embeddings."""
    told(lambda: _made(json_decoder(partial(fields.parsed, embeddings.EmbeddingBody)), data))


def vote(data: bytes) -> None:
    """POST /v1/feedback."""
    told(lambda: routes.message_of(_made(json_decoder(routes.parsed_feedback), data)))


def flags(data: bytes) -> None:
    """POST /ofrep/v1/evaluate/flags."""
    told(lambda: _made(json_decoder(ofrep.parse_context), data))


def form(data: bytes) -> None:
    """A form of the console."""
    told(lambda: _made(Decoder(count_form, parsed_form), data))


def infer(data: bytes) -> None:
    """ModelInfer of KServe, whose parameters may be JSON in a tensor."""
    told(lambda: tensors.parse_request(_made(decoder_of(oip.ModelInferRequest.FromString), data)))


def wire(data: bytes) -> None:
    """Any message, whose first byte says which: the parser takes nothing that the count does not know."""
    kind = KINDS[data[0] % len(KINDS)] if data else KINDS[0]
    with suppress(InvalidRequest):
        told(lambda: _made(decoder_of(kind.FromString), data[1:]))


# -- How inputs grow


def json_grown(data: bytes, random: Random) -> bytes:
    """JSON that is nearly right, in which one value may be a list or object of up to 2 MiB."""
    made = json_changed(data, random)
    if random.randint(0, 3):
        return made
    entry, count = random.choice(ENTRIES), random.choice((17, 257, 5_000, 16_000, 20_000, MOST_BYTES))
    count = min(count, MOST_BYTES // (len(entry) + 12))
    kind = random.randint(0, 3)
    if kind == 0:
        grown = b"[%s]" % b",".join([entry] * count)
    elif kind == 1:
        grown = b"{%s}" % b",".join(b'"%d":%s' % (number, entry) for number in range(count))
    elif kind == 2:
        grown = random.choice((b"[", b"]", b"{", b'"', b'"\\', b",", b"9", b'{"a":')) * count
    else:
        grown = b'"%s"' % (random.choice((b"x", b"\\n", b'\\"', b"[{,", b"\xc3\xa9")) * count)
    return _placed(made, grown, random)


def _placed(document: bytes, grown: bytes, random: Random) -> bytes:
    """The document with its mark, which is put at a random place of it, replaced by `grown`."""
    mark = "grown here"
    try:
        made = json.loads(document)
    except (ValueError, RecursionError):
        return document + grown
    if not isinstance(made, dict):
        return grown
    parent: Any = made
    while True:
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = random.choice(keys or ["messages"]) if isinstance(parent, dict) or keys else None
        if key is None:
            return grown
        below = parent[key] if key in keys else None
        if not isinstance(below, dict | list) or not below or random.randint(0, 2) == 0:
            parent[key] = mark
            break
        parent = below
    return json.dumps(made).encode().replace(json.dumps(mark).encode(), grown)


def wire_grown(kinds: Sequence[type[Message]]) -> Change:
    """A message whose first byte says which, with one field again and again, or deep in each other."""
    changed = message_changed(kinds)

    def grown(data: bytes, random: Random) -> bytes:
        made = changed(data, random)
        if random.randint(0, 2):
            return made
        kind = kinds[made[0] % len(kinds)]
        unit = _unit(random.choice((*kind.DESCRIPTOR.fields, None)), random)
        more = unit * min(random.choice((17, 300, 17_000, MOST_BYTES)), MOST_BYTES // len(unit) // 2)
        for _ in range(random.choice((0, 0, 1, 3, 99, 150))):
            more = bytes([random.randint(1, 15) << 3 | 2]) + _length(len(more)) + more
        return made + more

    return grown


def _unit(field: FieldDescriptor | None, random: Random) -> bytes:
    """A field of few bytes; of one that is not known, of any wire type."""
    number = field.number if field is not None and field.number < 16 else random.randint(1, 15)
    wire_type = random.randint(0, 5)
    content = {0: b"\1", 1: bytes(8), 2: random.choice((b"\0", b"\2\12\0", b"\1\1")), 5: bytes(4)}
    return bytes([number << 3 | wire_type]) + content.get(wire_type, b"")


def _length(size: int) -> bytes:
    return bytes([size >> shift & 127 | (128 if shift < 28 else 0) for shift in range(0, 35, 7)])


def infer_grown(data: bytes, random: Random) -> bytes:
    """A ModelInfer request, whose parameters may be JSON that grows."""
    if random.randint(0, 1):
        return wire_grown((oip.ModelInferRequest,))(b"\0" + data, random)[1:]
    request = good_infer(json_grown(b'{"max_tokens": 4, "stop": ["a"], "json_schema": "{}"}', random))
    made = request.SerializeToString()
    return bytes_changed(made, random) if random.randint(0, 9) == 0 else made


def form_grown(data: bytes, random: Random) -> bytes:
    """Fields of a form, some of them long."""
    pairs = data.split(b"&")
    for _ in range(random.randint(0, 3)):
        text = random.choice((b"%41", b"%", b"+", b"a=b&", b"%C3%A9", b"&", random.choice(TEXTS).encode()))
        count = random.choice((1, 300, 100_000, MOST_BYTES))
        pairs.append(b"x=" + text * min(count, MOST_BYTES // max(1, len(text))))
    random.shuffle(pairs)
    return bytes_changed(b"&".join(pairs), random) if random.randint(0, 9) == 0 else b"&".join(pairs)


# -- Where they begin


def good_infer(parameters: bytes) -> oip.ModelInferRequest:
    """A request with a text and parameters."""
    texts = {tensors.TEXT: b"hi", tensors.SAMPLING: parameters}
    inputs: list[Any] = [
        {"name": name, "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [text]}}
        for name, text in texts.items()
    ]
    return oip.ModelInferRequest(model_name="auto", inputs=inputs)


def good_responses() -> Sequence[bytes]:
    """Requests for responses with the items and fields that are read."""
    part = {"type": "input_text", "text": "b"}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": [part, part]},
        call,
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    whole = {"input": items, "instructions": "a", "tools": [tool], "tool_choice": "auto", "include": []}
    form = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    plain = {"input": "a", "text": form, "max_output_tokens": 4, "metadata": {"a": "b"}, "user": "u"}
    return [json.dumps(body).encode() for body in (whole, plain)]


def good_chats() -> Sequence[bytes]:
    """One with every field, and a short one."""
    parts = [{"type": "text", "text": "hi"}]
    schema = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
    full = {
        "model": "medical",
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": parts}],
        "stop": ["x"],
        "metadata": {"a": "b"},
        "response_format": schema,
        "routing": {"domain": "d", "explain": True, "mixture": []},
        "stream_options": {"include_usage": True},
    }
    short = {"messages": [{"role": "user", "content": "hi"}], "choice": ["a", "b"]}
    return [json.dumps(one).encode() for one in (full, short)]


def good_completions() -> Sequence[bytes]:
    """Prompts as text and as a list."""
    return [b'{"prompt": "a b", "max_tokens": 4}', b'{"prompt": ["a b"], "user": "u"}']


def good_votes() -> Sequence[bytes]:
    """An outcome and feedback."""
    outcome = {"response_id": "r", "metric": "m", "value": 1, "time": "2027-01-31T09:30:00Z"}
    judged = {"response_id": "r", "should_have_been": "legal", "prompt": "t"}
    return [json.dumps(one).encode() for one in (outcome, judged)]


def good_messages() -> Sequence[bytes]:
    """An empty one of each kind, and a chat."""
    said = pb.Chat(messages=[pb.ChatMessage(role=pb.ROLE_USER, text="hi")])
    chat_request = b"\0" + pb.GenerateRequest(input=pb.Input(chat=said)).SerializeToString()
    return [chat_request, *(bytes([number]) for number in range(len(KINDS)))]
