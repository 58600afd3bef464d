"""Labelled requests, routed without a server by the server's own router, over the adapters of a folder."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.cli.adapter_folders import read_profiles
from router.cli.command import CliError

if TYPE_CHECKING:
    from router.config import Settings
    from router.engine.base import Engine
    from router.extensions.calibration.rows import Choice, DataRow, RoutedRow
    from router.plugins import PluginHost
    from router.routing import BaseModel
    from router.routing.in_force import RuleInForce
    from router.routing.router import Router
    from router.types import AdapterInfo, AdapterProfile, Request, Visible, VotesByClassifier

PATIENCE_SECONDS = 86_400.0  # for classifiers that learn, and for the base: nobody waits for a request here
BATCH = 32  # requests asked together
MOST_LOST = 0.05  # share of requests that may lose the vote of a classifier
LEAST = 0.05  # below which confidences are not told apart
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Labelled requests, JSON lines.", show_default=False)
]
Ood = Annotated[
    Path | None,
    typer.Option("--ood", metavar="FILE", help="Requests that no adapter should get, JSON lines."),
]


def note(text: str) -> None:
    """A word on stderr."""
    typer.echo(text, err=True)


# -- the router without a server


class FixedCatalog:
    """A catalog of these adapters."""

    def __init__(self, profiles: Sequence[AdapterProfile]) -> None:
        self._profiles = tuple(profiles)

    def why_none(self, visible: object = None) -> str:
        """Why no adapter can be routed to."""
        return "" if self._profiles else "no adapter is here"

    def profiles(self) -> tuple[AdapterProfile, ...]:
        """All of them."""
        return self._profiles

    def resolve(self, name: str, version: str = "", visible: Visible | None = None) -> AdapterInfo:
        """As though it were ready."""
        from router.types import AdapterInfo, AdapterRef, AdapterState

        return AdapterInfo(ref=AdapterRef(name, version or "1"), state=AdapterState.READY)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Nothing changes."""


@asynccontextmanager
async def started_router(
    catalog: FixedCatalog, host: PluginHost, rule: RuleInForce, base: BaseModel | None = None
) -> AsyncIterator[Router]:
    """A router over the catalog, once all classifiers have learned it.

    Raises CliError for a classifier that cannot be asked: what the others do alone is not what is served.
    """
    from router.routing.router import Router

    router = Router(
        catalog,
        host,
        rule=rule,
        base_for=None if base is None else lambda seconds: base,
        ready_seconds=PATIENCE_SECONDS,
    )
    try:
        await router.start()
        if not host.registrations():
            raise CliError("no classifier can be asked here: `lora-router plugins doctor` says why")
        if flaws := router.flaws:
            raise CliError(f"{flaws[0]}; repair it, or leave it out with LORA_ROUTER_LOAD_PLUGINS")
        yield router
    finally:
        await router.close()


def asking(text: str) -> Request:
    """A request that leaves the choice to the router, and wants all votes."""
    from router.types import Request, RoutingHints, Turn

    return Request("0", turns=(Turn("user", text),), routing=RoutingHints(explain=True))


async def choices_of(router: Router, text: str) -> tuple[tuple[Choice, ...], tuple[str, ...]]:
    """Where a request goes at each threshold, and the classifiers whose votes were lost.

    The router decides again at each confidence that a classifier has, from votes that it knows already:
    between two of them nothing changes.
    """
    from router.extensions.calibration.rows import Choice

    request = asking(text)
    known: VotesByClassifier = {}
    first = await router.route(request, 1.0, known)
    confidences = {c for votes in known.values() for vote in votes.values() for c in vote.scores.values()}
    choices: list[Choice] = []
    for confidence in sorted(confidences - {0.0}, reverse=True):
        if confidence < LEAST and choices and choices[-1].adapter:
            break
        decision = await router.route(request, confidence, known)
        name = decision.adapter.name if decision.adapter else ""
        choices.append(Choice(confidence, name, decision.classifier if name else ""))
    return tuple(choices), tuple(lost.classifier for lost in first.votes_lost)


# -- adapters and classifiers of a folder


@dataclass(frozen=True, slots=True)
class Local:
    """Settings and adapters of this folder."""

    settings: Settings
    profiles: tuple[AdapterProfile, ...]

    def read(self, files: Sequence[Path], label: str | None = None) -> list[DataRow]:
        """Labelled requests of these files, each once, one of each group, without the examples of adapters.
        `label` is that of rows which say none."""
        from router.extensions.calibration.rows import distinct, one_of_each, read_rows, unseen

        names = {profile.name for profile in self.profiles}
        rows = distinct(row for path in files for row in read_rows(path, names, label))
        kept = unseen(rows, {t for p in self.profiles for t in (*p.examples, *p.negative_examples)})
        if left := len(rows) - len(kept):
            note(f"{left} requests are examples of an adapter and are left out")
        alone = one_of_each(kept)
        if left := len(kept) - len(alone):
            note(f"{left} requests are of the same group as another one and are left out")
        return alone

    def route(self, *parts: Sequence[DataRow]) -> list[list[RoutedRow]]:
        """The rows of each part, with a progress bar on a terminal. Raises CliError where votes are lost."""
        from router.cli.plugins import load_plugins

        host = load_plugins()
        wanted = any(r.wants_base for r in host.registrations())
        with resident_base(self.settings) if wanted else nullcontext() as base:
            found = iter(asyncio.run(self._route([row for part in parts for row in part], host, base)))
        return [[next(found) for _ in part] for part in parts]

    async def _route(
        self, rows: Sequence[DataRow], host: PluginHost, base: BaseModel | None
    ) -> list[RoutedRow]:
        from router.cli.settings import rule_of
        from router.extensions.calibration.rows import RoutedRow
        from router.progress import progress_bars

        rule = rule_of(self.settings.model_copy(update={"calibration": ""}))
        found: list[RoutedRow] = []
        lost: Counter[str] = Counter()
        async with started_router(FixedCatalog(self.profiles), host, rule, base) as router:
            with progress_bars() as progress:
                for start in range(0, len(rows), BATCH):
                    progress("requests", start, len(rows))
                    part = rows[start : start + BATCH]
                    answers = await asyncio.gather(*(choices_of(router, row.text) for row in part))
                    for row, (choices, missing) in zip(part, answers, strict=True):
                        found.append(RoutedRow(row, choices))
                        lost.update(missing)
        for name, count in lost.items():
            note(f"classifier {name} lost {count} of {len(rows)} votes")
            if count > MOST_LOST * len(rows):
                raise CliError(
                    f"classifier {name} lost too many votes: `lora-router plugins doctor` says more"
                )
        return found


def local() -> Local:
    """Read settings and adapters. Raises CliError where there are no adapters."""
    from router.cli.settings import adapter_folders, load_settings

    settings = load_settings()
    settings = settings.model_copy(update={"adapters_dir": adapter_folders(settings)})
    profiles = read_profiles(settings.adapters_dir)
    if not profiles:
        raise CliError("there are no adapters here: set adapters_dir to their folder")
    return Local(settings, profiles)


# -- the base model for classifiers that ask it


@contextmanager
def resident_base(settings: Settings) -> Iterator[BaseModel]:
    """Fetch and load the base of these settings; let it go at the end. Raises ConfigError."""
    from router.cli.engines import engine_of
    from router.cli.plugins import host_of

    plugins = host_of(settings)
    plugins.refresh()
    engine, _ = engine_of(settings, plugins)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="base", daemon=True)
    thread.start()
    try:
        engine.start()
        yield asyncio.run_coroutine_threadsafe(_reader(engine), loop).result()
    finally:
        engine.close()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _reader(engine: Engine) -> BaseModel:
    from router.engine.base_model import EngineBaseModel

    return EngineBaseModel(engine, PATIENCE_SECONDS)
