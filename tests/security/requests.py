"""What can be said to the server: every field of every request, by its place."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from router.v1 import adapters_pb2, experiments_pb2, fleet_pb2, inference_pb2

MODULES = (inference_pb2, adapters_pb2, fleet_pb2, experiments_pb2)


def request_types() -> dict[str, Descriptor]:
    """The message that each of our methods takes."""
    return {
        f"/{service.full_name}/{method.name}": method.input_type
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def fields(message: Descriptor, within: str = "") -> Iterator[tuple[str, FieldDescriptor]]:
    """Every field below a message, with its path; messages of Google's are told as one field."""
    for field in message.fields:
        path = f"{within}.{field.name}" if within else field.name
        yield path, field
        inner = field.message_type
        if inner is not None and not inner.full_name.startswith("google.") and path.count(".") < 8:
            yield from fields(inner, path)


def every_field() -> dict[str, FieldDescriptor]:
    """Of every request, by `Request.path`."""
    return {
        f"{message.name}.{path}": field
        for message in request_types().values()
        for path, field in fields(message)
    }
