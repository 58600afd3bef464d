"""The adapters of a fleet, and the replicas that have read them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from router.engine.base import AdapterArtifact
from router.errors import FailedPrecondition, ResourceExhausted, RouterError, Unavailable
from router.replicas.link import LinkLost
from router.replicas.messages import load
from router.replicas.placement import Placement
from router.replicas.replica import FleetReplica
from router.v1 import engine_pb2 as pb

log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class LoadedAdapter:
    """An adapter that is loaded somewhere, or will be again."""

    digest: str
    name: str
    command: pb.EngineCommand  # that has a replica load it
    parts: tuple[str, ...]
    invocation: tuple[int, ...]
    size: int = 0
    gone: bool = False
    asked: float = field(default_factory=time.monotonic)  # when a job last went to it, or when it came
    loading: dict[str, asyncio.Task[int]] = field(default_factory=dict)  # by replica


class Weights:
    """Brings adapters to replicas: the first time, for more requests, and again after one was lost."""

    def __init__(
        self,
        replicas: dict[str, FleetReplica],
        placement: Placement,
        most_bytes: int,
        used: Collection[tuple[str, str]],
        shared: bool = False,
    ) -> None:
        """A replica has at most `most_bytes` of weights; `used` are adapters and replicas where a job uses
        them. `shared`: other edges have adapters there, too.
        """
        self.replicas, self.placement = replicas, placement
        self._most_bytes, self._used, self._shared = most_bytes, used, shared
        self.pinned: Callable[[str], bool] = lambda digest: False
        self._kept: dict[str, LoadedAdapter] = {}
        self._coming: Counter[str] = Counter()  # bytes on their way, by replica
        self._restoring: asyncio.Task[None] | None = None
        self._look_again = False
        self._dropping: set[asyncio.Task[None]] = set()

    def get(self, digest: str) -> LoadedAdapter | None:
        """The adapter, unless it is not loaded."""
        return self._kept.get(digest)

    def close(self) -> None:
        """Bring nothing any more."""
        tasks = [task for kept in self._kept.values() for task in kept.loading.values()]
        for task in (*tasks, *self._dropping, *([self._restoring] if self._restoring else [])):
            task.cancel()

    async def add(self, artifact: AdapterArtifact) -> int:
        """Keep it, at one replica to begin with; returns its bytes. Raises as Engine.load."""
        kept = self._kept.get(artifact.digest)
        if kept is None:
            parts = tuple(digest for digest, _ in artifact.parts)
            self._check_parts(parts)
            size = _bytes(artifact) + sum(self._kept[part].size for part in parts)
            invocation = artifact.invocation_tokens
            kept = LoadedAdapter(artifact.digest, artifact.name, load(artifact), parts, invocation, size)
            kept = self._kept.setdefault(artifact.digest, kept)
        if self.placement.homes(kept.digest):
            return kept.size
        try:
            await self.bring(kept)
        except BaseException:
            self._forget(kept)
            raise
        return kept.size

    async def remove(self, digest: str) -> int:
        """Let it go everywhere; returns its bytes, 0 if it is unknown."""
        kept = self._kept.get(digest)
        if kept is None:
            return 0
        homes = self.placement.homes(digest)
        self._forget(kept)
        await asyncio.gather(*(self._drop(digest, name) for name in homes))
        return kept.size

    async def bring(
        self,
        kept: LoadedAdapter,
        among: Collection[str] | None = None,
        first: str = "",
        pushing: bool = False,
    ) -> str:
        """Load it at one more replica, `first` or the best of those that are up (and `among`).

        Returns its name.

        Where one has no memory for it, or not its folder, the next is tried. `pushing`: a request waits for
        it, so what was asked for least recently goes, and is nowhere until it is asked for. Raises as
        Engine.load, Unavailable if none is up.
        """
        tried: set[str] = set()
        error: RouterError = Unavailable("no replica is up")
        while True:
            names = {name for name, replica in self.replicas.items() if replica.takes} - tried
            names = names if among is None else names & set(among)
            roomy = names & set(kept.loading) or self._with_room(kept, names, pushing)
            if names and not roomy:
                error = ResourceExhausted(f"no replica has memory left for {kept.name!r} (host_memory_mb)")
            names = roomy if first in roomy else self._near_parts(kept, self._held_elsewhere(kept, roomy))
            to = first if first in names else self.placement.new_home(kept.digest, names)
            if not to:
                raise error
            tried.add(to)
            try:
                await self.load(kept, to)
                return to
            except LinkLost as lost:
                error = Unavailable(f"{lost}: ask again")
            except (ResourceExhausted, Unavailable) as refused:
                error = refused

    def has_room(self, kept: LoadedAdapter, name: str) -> bool:
        """Whether that replica can have it beside what it has."""
        return self.placement.used[name] + self._coming[name] + kept.size <= self._most_bytes

    def make_room(self, kept: LoadedAdapter, name: str, pushing: bool) -> bool:
        """Let others go from that replica until it can have this one, too; False where that is not enough."""
        if self.has_room(kept, name):
            return True
        for digest in self._who_may_go(name, pushing, pinned=not self.placement.homes(kept.digest)):
            self.drop(digest, name)
            if self.has_room(kept, name):
                return True
        return False

    async def load(self, kept: LoadedAdapter, name: str) -> int:
        """Have it at that replica, with what it is mixed of. Who asks at once waits for the same load."""
        task = kept.loading.get(name)
        if task is None:
            self._coming[name] += kept.size  # now: who asks for room before the task runs must know of it
            task = asyncio.get_running_loop().create_task(self._load(kept, name, kept.size))
            kept.loading[name] = task
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # if nobody waits
        return await asyncio.shield(task)

    def drop(self, digest: str, name: str) -> None:
        """Let one home go; no job of it runs there."""
        self.placement.unsettle(digest, name)
        task = asyncio.get_running_loop().create_task(self._drop(digest, name))
        self._dropping.add(task)
        task.add_done_callback(self._dropping.discard)

    def restore(self) -> None:
        """A replica went or came: adapters that are nowhere are brought somewhere, the busiest first."""
        self._look_again = True
        if self._restoring is None or self._restoring.done():
            self._restoring = asyncio.get_running_loop().create_task(self._restore())

    async def _restore(self) -> None:
        while self._look_again:
            self._look_again = False
            for kept in self._homeless():
                if kept.gone or kept.loading or self.placement.homes(kept.digest):
                    continue
                if not any(replica.takes for replica in self.replicas.values()):
                    break  # who comes next begins again
                try:
                    await self.bring(kept)
                except ResourceExhausted:
                    log.warning(
                        "replicas that are up have no memory for all adapters: others wait for requests"
                    )
                    break
                except RouterError as error:
                    log.warning("adapter %s is nowhere until it is asked for: %s", kept.name, error)

    def _homeless(self) -> list[LoadedAdapter]:
        """Mixtures last, which are made of others."""
        found = [kept for kept in self._kept.values() if not self.placement.homes(kept.digest)]
        return sorted(found, key=lambda kept: (bool(kept.parts), -kept.asked))

    async def _load(self, kept: LoadedAdapter, name: str, expected: int) -> int:
        try:
            replica = self.replicas.get(name)
            if replica is None:
                raise LinkLost(f"replica {name} has left")
            for part in kept.parts:
                if name not in self.placement.homes(part):
                    self._check_parts((part,))
                    await self.load(self._kept[part], name)
            command = pb.EngineCommand()
            command.CopyFrom(kept.command)  # which gets a key for each replica
            size = (await replica.call(command)).size
        finally:
            kept.loading.pop(name, None)
            self._coming[name] -= expected
        kept.size = size
        if kept.gone:
            await self._drop(kept.digest, name)
        else:
            self.placement.settle(kept.digest, name, size)
        return size

    async def _drop(self, digest: str, name: str) -> None:
        replica = self.replicas.get(name)
        if replica is None or not replica.up:
            return
        try:
            await replica.call(pb.EngineCommand(unload=pb.EngineCommand.Unload(digest=digest)))
        except LinkLost:
            return  # and the adapter with it
        except RouterError:
            log.exception("replica %s could not unload %s", name, digest[:12])

    def _with_room(self, kept: LoadedAdapter, names: set[str], pushing: bool) -> set[str]:
        """Those with memory for it; where there is none, one that has some once others have gone."""
        if roomy := {name for name in names if self.has_room(kept, name)}:
            return roomy
        for name in sorted(names, key=lambda name: self.placement.used[name]):
            if self.make_room(kept, name, pushing):
                return {name}
        return set()

    def _who_may_go(self, name: str, pushing: bool, pinned: bool) -> Iterator[str]:
        """What is elsewhere, too; if somebody is `pushing`, also what is there only, and what is pinned last
        and only with `pinned`. What was asked for least recently goes first, and nothing in use.
        """
        there = (self._kept[digest] for digest in self.placement.living(name) if digest in self._kept)
        free = sorted((k for k in there if (k.digest, name) not in self._used), key=lambda kept: kept.asked)
        several = [kept for kept in free if len(self.placement.homes(kept.digest)) > 1]
        yield from (kept.digest for kept in several)
        if pushing:
            only = [kept for kept in free if kept not in several]
            yield from (kept.digest for kept in only if not self.pinned(kept.digest))
            yield from (kept.digest for kept in only if pinned and self.pinned(kept.digest))

    def _held_elsewhere(self, kept: LoadedAdapter, names: set[str]) -> set[str]:
        """Those that have it for another edge, where there are some: it needs no memory there."""
        if not self._shared:
            return names
        has = {name for name in names if kept.digest in self.replicas[name].status.host_adapters}
        return has - set(self.placement.homes(kept.digest)) or names

    def _near_parts(self, kept: LoadedAdapter, names: set[str]) -> set[str]:
        """Of a mixture those replicas that have most of its parts."""
        if not kept.parts or not names:
            return names
        have = {name: sum(name in self.placement.homes(part) for part in kept.parts) for name in names}
        return {name for name, count in have.items() if count == max(have.values())}

    def _check_parts(self, parts: Collection[str]) -> None:
        if any(part not in self._kept for part in parts):
            raise FailedPrecondition("an adapter of the mixture is not loaded any more: ask again")

    def _forget(self, kept: LoadedAdapter) -> None:
        kept.gone = True
        if self._kept.get(kept.digest) is kept:
            del self._kept[kept.digest]
            self.placement.forget(kept.digest)


def _bytes(artifact: AdapterArtifact) -> int:
    """About what it takes; a replica says how much it is."""
    return sum(site.a.data.nbytes + site.b.data.nbytes for site in artifact.sites.values())
