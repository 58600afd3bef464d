"""One fleet for several edges: replicas that all find by name, and a keeper who decides who belongs to it.

Replicas and keeper are detached actors: they outlive the edge that made them. The keeper makes none. It says
who is to be there, and the edges, which know how to make an engine, have them made by whoever asks first. It
ends those that nobody needs, and everybody when no edge was heard of for a while. Ray restarts it when it is
lost: it finds the members by their names, and the bounds in what edges were told last.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from router import __version__
from router.errors import ConfigError, RouterError, Unavailable
from router.fleet.crew import Report, Roster
from router.fleet.link import Link
from router.fleet.local_crew import LocalCrew
from router.fleet.messages import WIRE
from router.fleet.ray_link import NAMESPACE, RayCluster, RayLink, line
from router.fleet.replica import PATIENCE

log = logging.getLogger(__name__)

KEEPER_SECONDS = 5.0  # for an answer of the keeper
FIRST_SECONDS = 60.0  # for its first: its process may have to start
PING_SECONDS = 5.0  # for one of a replica
CHECK_SECONDS = PING_SECONDS + KEEPER_SECONDS
HEAR_SECONDS = 5.0  # between two signs of life of an edge that starts
FORSAKEN_SECONDS = 60.0  # without a word of any edge
Spec: TypeAlias = Mapping[str, Any]  # what all edges of a fleet must have in common, by the names of settings


def replica_name(fleet: str, member: str) -> str:
    """Of the actor, in our namespace."""
    return f"{fleet}/replica/{member}"


def keeper_name(fleet: str) -> str:
    """Of the actor, in our namespace."""
    return f"{fleet}/keeper"


def refusal(fleet: str, theirs: Spec, mine: Spec) -> str:
    """Why an edge cannot be one of the fleet, by name and difference; empty if it can."""
    names = sorted({*theirs, *mine})
    parts = [
        f"its {name} is {mine.get(name)!r}, that of the fleet {theirs.get(name)!r}"
        for name in names
        if theirs.get(name) != mine.get(name)
    ]
    if not parts:
        return ""
    told = "; ".join(parts)
    return f"this edge cannot be one of the fleet {fleet}: {told}. Make them the same, or name another fleet"


class SharedLink(RayLink):
    """The way to a replica that other edges use, too: it is found or made, and ended by the keeper alone."""

    def __init__(self, name: str, cluster: RayCluster, crew: RayCrew, patience: float) -> None:
        shared = {
            "name": replica_name(crew.fleet, name),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
        }
        super().__init__(name, cluster, shared)
        self._crew, self._patience = crew, patience

    def kill(self) -> None:
        """Have it looked at: it is ended if it answers nobody or goes on with nothing, and not because the
        way between it and this edge is cut."""
        actor, self._actor, self._door = self._actor, None, None
        if actor is not None:
            self._crew.check(self.name, actor._actor_id.hex(), self._patience)

    def close(self) -> None:
        """This edge leaves it to the others."""
        self._actor, self._door = None, None
        self._crew.leave()


def shared_links(crew: RayCrew, cluster: RayCluster, stall_seconds: float) -> Callable[[str], Link]:
    """The way to each member, by its name."""
    return lambda name: SharedLink(name, cluster, crew, PATIENCE * stall_seconds)


class RayCrew:
    """Implements `router.fleet.crew.Crew` over the keeper. Lives in an edge."""

    def __init__(
        self, cluster: RayCluster, fleet: str, spec: Spec, bounds: tuple[int, int], **keeping: float
    ) -> None:
        """`keeping`: options of a `Keeper` that this edge makes."""
        self.fleet, self._cluster, self._bounds = fleet, cluster, bounds
        self._spec = {"version": __version__, "wire": WIRE, **spec}
        self._keeping = keeping
        self._keeper: Any = None
        self._roster: Roster | None = None
        self._started = threading.Event()

    async def report(self, report: Report) -> Roster:
        """As Crew.report. Raises ConfigError where this edge differs from the others."""
        known, first = self._roster, self._roster is None
        bounds = None if known is None else (known.least, known.most)
        roster = await self._asked("report", report, self._spec, bounds)
        if first:
            threading.Thread(target=self._starting, name="crew", daemon=True).start()
        else:
            self._started.set()
        return roster

    def leave(self) -> None:
        """This edge starts no more, or has left."""
        self._started.set()

    def _starting(self) -> None:
        """Between its first report and its second a base is loaded, which may take minutes."""
        while not self._started.wait(HEAR_SECONDS):
            if (keeper := self._keeper) is not None:
                keeper.hear.options(num_returns=0).remote()

    async def resize(self, least: int, most: int) -> Roster:
        """As Crew.resize."""
        return await self._asked("resize", least, most)

    async def replace(self, names: Sequence[str]) -> Roster:
        """As Crew.replace."""
        return await self._asked("replace", tuple(names))

    def check(self, member: str, actor: str, patience: float) -> None:
        """Have a replica ended if it is not well; blocks. Where nobody can be asked it stays."""
        errors = self._cluster.ray.exceptions
        try:
            asked = self._found().check.remote(member, actor, patience)
            why = self._cluster.ray.get(asked, timeout=CHECK_SECONDS)
        except (errors.RayError, ValueError) as error:
            self._keeper = None
            log.warning("whether replica %s lives cannot be found out: %s", member, line(str(error)))
            return
        log.warning("replica %s: %s", member, why)

    def _found(self) -> Any:
        """The keeper that there is, or a new one."""
        if self._keeper is None:
            self._cluster.connect()
            kind = self._cluster.ray.remote(max_restarts=-1, max_task_retries=0, num_cpus=0)(Keeper)
            found = kind.options(
                name=keeper_name(self.fleet), namespace=NAMESPACE, lifetime="detached", get_if_exists=True
            )
            self._keeper = found.remote(self.fleet, self._spec, self._bounds, **self._keeping)
        return self._keeper

    async def _asked(self, method: str, *arguments: Any) -> Roster:
        if self._keeper is None:
            await asyncio.to_thread(self._found)
        try:
            asked = getattr(self._keeper, method).remote(*arguments)
            seconds = KEEPER_SECONDS if self._roster is not None else FIRST_SECONDS
            async with asyncio.timeout(seconds):
                said = await asked
        except TimeoutError:
            raise Unavailable(f"the keeper of fleet {self.fleet} does not answer") from None
        except self._cluster.ray.exceptions.RayError as error:
            self._keeper = None
            raise Unavailable(f"the keeper of fleet {self.fleet}: {line(str(error))}") from None
        if isinstance(said, RouterError):
            raise said
        roster: Roster = said
        if self._roster is None and (roster.least, roster.most) != self._bounds:
            log.warning(
                "fleet %s has %d to %d replicas, and this edge was told %d to %d: the fleet's bounds count",
                *(self.fleet, roster.least, roster.most, *self._bounds),
            )
        self._roster = roster
        return roster


class Actors:
    """The replicas of a fleet as the keeper finds them in Ray."""

    def __init__(self, fleet: str) -> None:
        import ray

        self._ray, self._prefix = ray, replica_name(fleet, "")

    def names(self) -> list[str]:
        """Of all that are there."""
        actors = self._ray.util.list_named_actors()
        return [name.removeprefix(self._prefix) for name in actors if name.startswith(self._prefix)]

    def end(self, member: str, actor: str = "") -> None:
        """End it, if it is there (and that very actor); blocks."""
        found = self._get(member)
        if found is not None and actor in ("", found._actor_id.hex()):
            self._ray.kill(found)

    async def ping(self, member: str, actor: str, patience: float) -> str:
        """What is wrong with it; empty where it is well, or is not that actor any more."""
        found = await asyncio.to_thread(self._get, member)
        if found is None or actor != found._actor_id.hex():
            return ""
        try:
            async with asyncio.timeout(PING_SECONDS):
                return str(await found.ping.remote(patience))
        except TimeoutError:
            return f"it does not answer within {PING_SECONDS:g} s"
        except self._ray.exceptions.RayError as error:
            return line(str(error))

    def _get(self, member: str) -> Any:
        try:
            return self._ray.get_actor(f"{self._prefix}{member}", namespace=NAMESPACE)
        except ValueError:  # there is none
            return None

    def leave(self, keeper: str) -> None:
        """The keeper itself ends, and is not started again."""
        self._ray.kill(self._ray.get_actor(keeper, namespace=NAMESPACE))


class Keeper:
    """What runs in the keeper's process: the decisions of `LocalCrew`, for all edges of a fleet."""

    def __init__(
        self,
        fleet: str,
        spec: Spec,
        bounds: tuple[int, int],
        forsaken_seconds: float = FORSAKEN_SECONDS,
        actors: Actors | None = None,
    ) -> None:
        logging.basicConfig(level=logging.INFO)
        self._fleet, self._spec, self._forsaken = fleet, spec, forsaken_seconds
        self._actors = actors or Actors(fleet)
        self._crew = LocalCrew(*bounds, self._actors.end)
        found = self._actors.names()
        self._crew.adopt(found)
        self._again = bool(found)  # bounds may have been changed since the first keeper was made
        self._heard = time.monotonic()
        threading.Thread(target=self._watching, name="forsaken", daemon=True).start()

    async def report(self, report: Report, spec: Spec, known: tuple[int, int] | None) -> Roster | RouterError:
        """As Crew.report. `known`: the bounds that the edge was told last."""
        if problem := refusal(self._fleet, self._spec, spec):
            return ConfigError(problem)
        self._heard = time.monotonic()
        if self._again and known is not None:
            self._again = False
            await self._crew.resize(*known)
        return await self._crew.report(report)

    async def hear(self) -> None:
        """An edge that starts is there still."""
        self._heard = time.monotonic()

    async def resize(self, least: int, most: int) -> Roster | RouterError:
        """As Crew.resize."""
        self._again = False
        return await _told(lambda: self._crew.resize(least, most))

    async def replace(self, names: Sequence[str]) -> Roster | RouterError:
        """As Crew.replace."""
        return await _told(lambda: self._crew.replace(names))

    async def check(self, member: str, actor: str, patience: float) -> str:
        """An edge has not heard of a replica, or sees it do nothing. Ends it if that is so; says what was
        found."""
        problem = await self._actors.ping(member, actor, patience)
        if not problem:
            return "it lives, for other edges at least, or is another one already"
        log.warning("replica %s is ended: %s", member, problem)
        await asyncio.to_thread(self._actors.end, member, actor)
        return f"ended: {problem}"

    def _watching(self) -> None:
        """In a thread: a keeper that Ray restarts has no event loop yet when it begins."""
        while time.monotonic() - self._heard < self._forsaken:
            time.sleep(min(1.0, self._forsaken / 10))
        log.warning("no edge of fleet %s was heard of for %g s: it ends", self._fleet, self._forsaken)
        for name in self._actors.names():
            self._actors.end(name)
        self._actors.leave(keeper_name(self._fleet))


async def _told(work: Callable[[], Awaitable[Roster]]) -> Roster | RouterError:
    """A refusal as a value: raised, it would come out of Ray as another error."""
    try:
        return await work()
    except RouterError as error:
        return error
