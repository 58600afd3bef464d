"""Edges and replicas of the release before: they know fewer fields and commands, and drop the others.

`python -m tests.replicas.older ...` is `lora-router replica ...` of that release.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from router.replicas import host
from router.replicas.host import EngineService
from router.replicas.link import Link
from router.replicas.messages import OLDEST, PROTOCOL
from router.v1 import engine_pb2 as pb

OLDER = max(OLDEST, PROTOCOL - 1)
NEW = {  # what a release may have added: the other side must do without
    "HelloResponse": {"instance", "oldest"},
    "EngineBase": {"kernels", "size_bytes"},
    "EngineCommand": {"drain"},
    "EngineCommand.Submit": {"own_constraint", "shared"},
    "EngineCommand.Read": {"scope"},
    "EngineEvent.Finished": {"cached_tokens", "queue_time", "accepted_draft_tokens"},
    "EngineState": {"flaws", "preemptions", "prefix_hit_tokens", "prefix_query_tokens"},
}
Sent = TypeVar("Sent", bound=Message)


def _reduced() -> descriptor_pool.DescriptorPool:
    """The messages without what is new."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    del file.service[:]
    left = {name: set(fields) for name, fields in NEW.items()}

    def reduce(message: descriptor_pb2.DescriptorProto, name: str) -> None:
        for field in [field for field in message.field if field.name in left.get(name, ())]:
            left[name].discard(field.name)
            message.field.remove(field)
        for nested in message.nested_type:
            reduce(nested, f"{name}.{nested.name}")

    for message in file.message_type:
        reduce(message, message.name)
    assert not any(left.values()), f"engine.proto has no {left}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call]
    return pool


POOL = _reduced()


def older(message: Sent) -> Sent:
    """What is left of a message after the other side has read it, or has written it."""
    kind = message_factory.GetMessageClass(POOL.FindMessageTypeByName(message.DESCRIPTOR.full_name))
    known = kind.FromString(message.SerializeToString())
    known.DiscardUnknownFields()
    return type(message).FromString(known.SerializeToString())


async def _older(messages: AsyncIterator[Sent]) -> AsyncGenerator[Sent, None]:
    async for message in messages:
        yield older(message)


class OlderService(EngineService):
    """A replica of the release before."""

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        hello = older(await super().Hello(request, context))
        hello.protocol, hello.version = OLDER, "0.0.1"
        return hello

    async def Attach(
        self, requests: AsyncIterator[pb.AttachRequest], context: Any
    ) -> AsyncIterator[pb.AttachResponse]:
        async for batch in super().Attach(_older(requests), context):
            yield older(batch)


class OlderLink(Link):
    """The way to a replica from an edge of the release before."""

    def send(self, *commands: pb.EngineCommand) -> None:
        super().send(*map(older, commands))

    async def batches(self, edge: str) -> AsyncGenerator[pb.AttachResponse, None]:
        async for batch in super().batches(edge):
            yield older(batch)


def main() -> None:
    """A replica of the release before."""
    from router.cli.main import app

    host.EngineService = OlderService  # type: ignore[misc]
    app(prog_name="lora-router")


if __name__ == "__main__":
    main()
