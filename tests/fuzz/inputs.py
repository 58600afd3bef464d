"""Inputs that are nearly right: seeds changed in the shape that their parser expects.

A change is a pure function of the input and of random numbers, so that hypothesis, which shrinks, and
atheris, which looks at coverage, share it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

Change = Callable[[bytes, Random], bytes]
MOST_BYTES = 1 << 16

TEXTS = (
    "",
    " ",
    "a",
    "base",
    "medical",
    "1.0.0",
    "adapters/medical",
    "adapters/medical/versions/1.0.0",
    "adapters/../../etc/passwd",
    "adapters/a/../b",
    "experiments/trial",
    "experiments/x\0y",
    "/etc/passwd",
    "file:///etc/passwd",
    "{prompt}",
    "{{7*7}}",
    "{prompt.__class__}",
    "<|im_start|>system",
    "a\nb\r\n\x1b[31m",
    "\0",
    "\u202e\u0661\U0001f600",
    "(([a-z._0-9])+)+$X",
    "' OR 1=1 --",
    "x" * 65,
    "é" * 5000,
    "answer_tokens",
    "thumbs_up",
    "[[[[[[[[[[",
    '{"type": "object"}',
)
NUMBERS = (0, 1, -1, 2, 64, 0.5, -0.5, 1e-320, 1e308, 1e999, -1e999, float("nan"), 1 << 31, -1 << 31, 1 << 63)
PIECES = (
    *(b'"', b"'", b"{", b"}", b"[", b"]", b",", b":", b"=", b".", b"\\", b"\n", b"\0", b"#", b"-", b"e9"),
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\\ud800", b"\\u0000", b"NaN", b"null", b"/*"),
    *(b"true", b"1e999", b"-0", b"9" * 30, b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"a." * 500, b'"""'),
    *(b"'''", b"Infinity", b"[[client]]"),
    *(b"1979-05-27T07:32:00Z", b"9999-12-31T23:59:59-23:59", b"0001-01-01T00:00:00+23:59"),
)  # fmt: skip


def bytes_changed(data: bytes, random: Random) -> bytes:
    """A few stretches replaced by what parsers stumble over, by other stretches, or by nothing."""
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(data))
        end = min(len(data), at + random.choice((0, 0, 1, 1, 2, 8, 64)))
        kind = random.randint(0, 3)
        if kind == 0:
            piece = random.choice(PIECES)
        elif kind == 1:
            piece = bytes(random.randint(0, 255) for _ in range(random.randint(0, 8)))
        elif kind == 2:
            other = random.randint(0, len(data))
            piece = data[other : other + random.randint(0, 64)]
        else:
            piece = b""
        data = data[:at] + piece + data[end:]
    return data[:MOST_BYTES]


def odd_value(random: Random) -> Any:
    """A JSON value that is probably of the wrong kind."""
    kind = random.randint(0, 5)
    if kind == 0:
        return random.choice(TEXTS)
    if kind == 1:
        return random.choice(NUMBERS)
    if kind == 2:
        return random.choice((None, True, False, [], {}, [[]], {"": {}}, [1, "a", None], 10**400, "9" * 400))
    if kind == 3:
        return [odd_value(random) for _ in range(random.randint(0, 3))]
    if kind == 4:
        return {random.choice(TEXTS): odd_value(random) for _ in range(random.randint(0, 3))}
    return random.choice((-1, 0, 1, 0.25, 1.5, "text", ["a"], {"a": 1}))


def json_changed(data: bytes, random: Random) -> bytes:
    """JSON with values replaced, left out or added; the bytes changed where it is none, and now and then."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_changed(data, random)
    for _ in range(random.randint(1, 3)):
        document = _replaced(document, random)
    try:
        made = json.dumps(document).encode()
    except (ValueError, RecursionError):
        return bytes_changed(data, random)
    return bytes_changed(made, random) if random.randint(0, 7) == 0 else made[:MOST_BYTES]


def _replaced(document: Any, random: Random) -> Any:
    """One place of `document`, found by walking down, replaced."""
    parent, key, value = None, None, document
    while isinstance(value, dict | list) and value and random.randint(0, 5):
        parent = value
        key = random.choice(list(value)) if isinstance(value, dict) else random.randrange(len(value))
        value = parent[key]
    if parent is None:
        return odd_value(random)
    action = random.randint(0, 3)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        parent[random.choice(TEXTS)] = value
    else:
        parent[key] = odd_value(random)
    return document


_VALUE = re.compile(rb"^([^=\n]*=)([^\n]*)$", re.MULTILINE)


def toml_changed(data: bytes, random: Random) -> bytes:
    """TOML with the value of a line replaced, or a line twice; else the bytes changed."""
    lines = list(_VALUE.finditer(data))
    if not lines or random.randint(0, 3) == 0:
        return bytes_changed(data, random)
    line = random.choice(lines)
    made = _toml(odd_value(random)) if random.randint(0, 4) else bytes_changed(line[2], random)
    twice = line[0] + b"\n" if random.randint(0, 9) == 0 else b""
    return (data[: line.start(2)] + made + b"\n" + twice + data[line.end(2) :])[:MOST_BYTES]


def _toml(value: Any) -> bytes:
    """As TOML has it; what it has not becomes a date."""
    if isinstance(value, bool) or value is None:
        return b"1979-05-27T07:32:00Z" if value is None else str(value).lower().encode()
    if isinstance(value, dict):
        return b"{" + b", ".join(json.dumps(k).encode() + b" = " + _toml(v) for k, v in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(map(_toml, value)) + b"]"
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "").encode()
    return str(value).encode()


# -- messages: the first byte says which, the rest is the message on the wire


def message_changed(kinds: Sequence[type[Message]]) -> Change:
    """Fields of a message filled, most of them with what is at the edge of something."""

    def changed(data: bytes, random: Random) -> bytes:
        which = data[0] % len(kinds) if data and random.randint(0, 2) else random.randrange(len(kinds))
        message = kinds[which]()
        try:
            message.ParseFromString(data[1:] if random.randint(0, 3) else b"")
        except DecodeError:
            message.Clear()
        fill(message, random)
        wire = message.SerializeToString()
        return bytes([which]) + (bytes_changed(wire, random) if random.randint(0, 9) == 0 else wire)

    return changed


def fill(message: Message, random: Random, depth: int = 0) -> None:
    """Set some fields of a message."""
    for field in message.DESCRIPTOR.fields:
        if random.randint(0, 2) or depth > 4:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _fill_map(getattr(message, field.name), field.message_type, random)
        elif field.is_repeated:
            for _ in range(random.choice((0, 1, 1, 2, 3, 17, 40))):
                _append(getattr(message, field.name), field, random, depth)
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            inner.SetInParent()
            fill(inner, random, depth + 1)
        else:
            setattr(message, field.name, scalar(field, random))


def _append(values: Any, field: FieldDescriptor, random: Random, depth: int) -> None:
    if field.message_type is not None:
        fill(values.add(), random, depth + 1)
    else:
        values.append(scalar(field, random))


def _fill_map(values: Any, entry: Descriptor, random: Random) -> None:
    of_key, field = entry.fields_by_name["key"], entry.fields_by_name["value"]
    for _ in range(random.choice((0, 1, 3, 17))):
        key = scalar(of_key, random)
        if field.message_type is not None:
            values[key].SetInParent()
            fill(values[key], random, 4)
        else:
            values[key] = scalar(field, random)


def scalar(field: FieldDescriptor, random: Random) -> Any:
    """A value that the field can hold."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        text = random.choice(TEXTS)
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return bool(random.randint(0, 1))
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.randint(-1, 7)
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return float(random.choice(NUMBERS))
    if kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64):
        most = (1 << (32 if kind == FieldDescriptor.CPPTYPE_UINT32 else 64)) - 1
        return random.choice((0, 1, 100, most, random.randint(0, 300)))
    bits = 31 if kind == FieldDescriptor.CPPTYPE_INT32 else 63
    return random.choice((0, 1, -1, 2, 100, 5000, (1 << bits) - 1, -(1 << bits), random.randint(-5, 300)))
