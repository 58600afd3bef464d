"""The new version before a share of the users: an experiment, whose verdict decides."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.errors import FailedPrecondition
from router.types import AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.client import Client, Spec
    from router.experiments.report.model import Report

OLD, NEW = "old", "new"
SEEN_SECONDS = 60.0  # until a server has noticed a new folder
ASKED_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Canary:
    """The experiment: share of the users, metric that decides, window in seconds, users planned."""

    share: float = 0.1
    metric: str = "feedback"
    window: float = 86_400.0
    units: int = 5000


def pin(client: Client, name: str, version: str) -> None:
    """Keep `version` the default, whatever is added. Raises FailedPrecondition if another one serves now."""
    serving = client.adapters.get(name).ref.version
    if serving != version:
        raise FailedPrecondition(
            f"{name} serves {serving} now, and the run started from {version}: begin a new run with --new"
        )
    client.adapters.set_default(f"{name}@{version}")


def await_version(client: Client, name: str, version: str) -> None:
    """Until the server knows a version whose folder was just added. Raises FailedPrecondition."""
    from router.client import ClientError

    end = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            found = client.adapters.get(f"{name}@{version}")
        except ClientError as error:
            if error.code != "NOT_FOUND" or time.monotonic() > end:
                raise
        else:
            if found.state is AdapterState.QUARANTINED:
                raise FailedPrecondition(f"the server refuses {name}@{version}: {found.error}")
            return
        time.sleep(ASKED_SECONDS)


def plan(name: str, old: str, new: str, canary: Canary) -> Spec:
    """Users, `share` of them with the new version; errors and broken-off answers are watched."""
    from router.client import ArmSpec, Spec, metric

    return Spec(
        hypothesis=f"{name} {new}, trained on feedback, pleases more users than {old}",
        route=name,
        arms=(
            ArmSpec(OLD, 1 - canary.share, AdapterRef(name, old)),
            ArmSpec(NEW, canary.share, AdapterRef(name, new)),
        ),
        control=OLD,
        primary=metric(canary.metric, missing="excluded"),
        guardrails=(
            metric("error", higher_is_better=False, margin=0.1),
            metric("cancelled", higher_is_better=False, margin=0.1),
        ),
        planned_units=canary.units,
        window=canary.window,
    )


def experiment_name(name: str, version: str) -> str:
    """What the experiment of a version is called.

    >>> experiment_name("medical", "1.1.0")
    'improve-medical-1-1-0'
    """
    return re.sub(r"[^a-z0-9-]+", "-", f"improve-{name}-{version}".lower())[:63].strip("-")


def start(client: Client, name: str, old: str, new: str, canary: Canary) -> str:
    """Create and start the experiment, unless it is there; returns its name."""
    called = experiment_name(name, new)
    known: Mapping[str, str] = {one.name: str(one.state) for one in client.experiments.list()}
    if called not in known:
        client.experiments.create(called, plan(name, old, new, canary))
    if known.get(called, "draft").lower() == "draft":
        client.experiments.start(called)
    return called


def sentence(report: Report) -> str:
    """The report's verdict in one sentence."""
    from router.experiments.words import heading

    return heading(report)


def gives_up(report: Report) -> bool:
    """Whether the planned users took part, and no difference is shown."""
    from router.experiments.words import gives_up

    return gives_up(report)
