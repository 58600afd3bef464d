"""`client.replicas`: what a server over several engines has, for threads and asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, Unpack

import grpc
import grpc.aio

from router.client.channel import AsyncCaller, Caller
from router.client.values import CallOptions, Fleet, Replacement, Replica
from router.v1 import fleet_pb2 as pb
from router.v1 import fleet_pb2_grpc


class Replicas:
    """`client.replicas`. A server without replicas answers FAILED_PRECONDITION."""

    def __init__(self, channel: grpc.Channel, caller: Caller) -> None:
        self._stub = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    def list(self, **options: Unpack[CallOptions]) -> Fleet:
        """All, and how many there may be."""
        answer = self._caller.unary(self._stub.ListReplicas, pb.ListReplicasRequest(), options)
        return to_fleet(answer)

    def resize(self, least: int, most: int, **options: Unpack[CallOptions]) -> tuple[int, int]:
        """No fewer than `least` and no more than `most` from now on; returns both."""
        request = pb.ResizeReplicasRequest(least=least, most=most)
        answer = self._caller.unary(self._stub.ResizeReplicas, request, options)
        return answer.least, answer.most

    def replace(self, names: Sequence[str] = (), **options: Unpack[CallOptions]) -> Iterator[Replacement]:
        """A new one for each of these, or for all, one after the other: every step as it comes.

        What was begun goes on when the loop is left. No deadline unless given.
        """
        options.setdefault("timeout", None)
        for message in self._caller.stream(self._stub.ReplaceReplicas, replace_request(names), options):
            yield to_replacement(message)

    def drain(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Have one end when it has finished; what started it starts it again."""
        self._caller.unary(self._stub.DrainReplica, pb.DrainReplicaRequest(name=name), options)


class AsyncReplicas:
    """`client.replicas`, awaited."""

    def __init__(self, channel: grpc.aio.Channel, caller: AsyncCaller) -> None:
        self._stub: Any = fleet_pb2_grpc.FleetServiceStub(channel)  # type: ignore[no-untyped-call]
        self._caller = caller

    async def list(self, **options: Unpack[CallOptions]) -> Fleet:
        """All, and how many there may be."""
        answer = await self._caller.unary(self._stub.ListReplicas, pb.ListReplicasRequest(), options)
        return to_fleet(answer)

    async def resize(self, least: int, most: int, **options: Unpack[CallOptions]) -> tuple[int, int]:
        """No fewer than `least` and no more than `most` from now on; returns both."""
        request = pb.ResizeReplicasRequest(least=least, most=most)
        answer = await self._caller.unary(self._stub.ResizeReplicas, request, options)
        return answer.least, answer.most

    async def replace(
        self, names: Sequence[str] = (), **options: Unpack[CallOptions]
    ) -> AsyncIterator[Replacement]:
        """A new one for each of these, or for all, one after the other: every step as it comes.

        What was begun goes on when the loop is left. No deadline unless given.
        """
        options.setdefault("timeout", None)
        received: Any = self._caller.stream(self._stub.ReplaceReplicas, replace_request(names), options)
        async with aclosing(received):
            async for message in received:
                yield to_replacement(message)

    async def drain(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Have one end when it has finished; what started it starts it again."""
        await self._caller.unary(self._stub.DrainReplica, pb.DrainReplicaRequest(name=name), options)


def replace_request(names: Sequence[str]) -> pb.ReplaceReplicasRequest:
    """No names are all."""
    return pb.ReplaceReplicasRequest(names=names, all=not names)


def to_fleet(message: pb.ListReplicasResponse) -> Fleet:
    """Without proto types."""
    return Fleet(tuple(map(to_replica, message.replicas)), message.least, message.most)


def to_replica(message: pb.Replica) -> Replica:
    """Without proto types."""
    return Replica(
        message.name,
        pb.Replica.State.Name(message.state).removeprefix("STATE_").lower(),
        message.since.ToNanoseconds() / 1e9,
        message.problem,
        message.running,
        message.waiting,
        message.adapters,
        message.device,
    )


def to_replacement(message: pb.ReplaceReplicasResponse) -> Replacement:
    """Without proto types."""
    step = pb.ReplaceReplicasResponse.Step.Name(message.step).removeprefix("STEP_").lower()
    return Replacement(message.old, message.new, step, message.problem)
