"""What no request can say: a file, an address, a variable of the environment, code, or a tensor."""

from __future__ import annotations

import re

import pytest
from google.protobuf.descriptor import FieldDescriptor

from tests.security.requests import every_field, request_types

# Words of a name that would set where something is read, written, fetched or run.
PLACES = {
    *("file", "filename", "path", "dir", "directory", "folder", "url", "uri", "endpoint", "address", "host"),
    *(
        "port",
        "env",
        "environment",
        "command",
        "cmd",
        "exec",
        "script",
        "module",
        "plugin",
        "import",
        "socket",
    ),
    *(
        "image",
        "video",
        "audio",
        "media",
        "log",
        "config",
        "revision",
        "repo",
        "source",
        "download",
        "webhook",
    ),
    *("trust", "remote", "code", "template", "extra", "options", "parameters", "kwargs"),
}
TENSORS = {
    "tensor",
    "embedding",
    "embeddings",
    "embeds",
    "logits",
    "hidden",
    "states",
    "delta",
    "lora",
    "blob",
}
NUMBERS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
SCHEMAS = {".tools.functions.parameters"}  # JSON Schemas of a function's arguments, which is their name
SHARES = {  # of an experiment's arms, and the two ends of a slot: checked by number and range
    "CreateExperimentRequest.experiment.slot",
    "UpdateExperimentRequest.experiment.slot",
}


def words(name: str) -> set[str]:
    """Of a field's own name."""
    return set(re.split(r"[_.]", name.rpartition(".")[2]))


def test_there_are_fields_to_look_at() -> None:
    assert len(request_types()) > 20
    assert len(every_field()) > 150
    assert "GenerateRequest.sampling.json_schema" in every_field()


@pytest.mark.parametrize("kind", ["places", "tensors"])
def test_no_field_is_called_so(kind: str) -> None:
    bad = PLACES if kind == "places" else TENSORS
    found = {path for path in every_field() if words(path) & bad}
    assert {path for path in found if not path.endswith(tuple(SCHEMAS))} == set()


def test_no_field_is_bytes_or_anything_at_all() -> None:
    """Bytes and Any would be a way for what is not a request: weights, pickles, images."""
    odd = {
        path
        for path, field in every_field().items()
        if field.type == FieldDescriptor.TYPE_BYTES
        or (field.message_type is not None and field.message_type.full_name in ("google.protobuf.Any",))
    }
    assert odd == set()


def test_no_field_is_a_list_of_fractions_but_shares() -> None:
    lists = {p for p, field in every_field().items() if field.is_repeated and field.cpp_type in NUMBERS}
    assert lists == SHARES


def test_free_structures_are_told_and_never_taken() -> None:
    """google.protobuf.Struct stands in answers only: nothing free is read from a request."""
    kinds = {
        field.message_type.full_name
        for field in every_field().values()
        if field.message_type is not None and field.message_type.full_name.startswith("google.")
    }
    assert kinds == {
        "google.protobuf.Duration",
        "google.protobuf.FieldMask",
        "google.protobuf.Timestamp",
    }
