"""The new version before a share of the users: an experiment, whose verdict decides."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from router.errors import FailedPrecondition
from router.types import AdapterRef, AdapterState

if TYPE_CHECKING:
    from router.client import Client, Spec

SEEN_SECONDS = 60.0  # until a server has noticed a new folder
ASKED_SECONDS = 0.5
WINDOW_SECONDS = 86_400.0  # in which outcomes of a user count
UNITS = 5000  # users planned


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


def plan(name: str, old: str, new: str, share: float, alpha: float) -> Spec:
    """Users, `share` of them with the new version. Feedback decides; errors and broken-off answers are
    watched."""
    from router.client import ArmSpec, Spec, metric

    return Spec(
        hypothesis=f"{name} {new}, trained on feedback, pleases more users than {old}",
        route=name,
        arms=(
            ArmSpec("old", 1 - share, AdapterRef(name, old)),
            ArmSpec("new", share, AdapterRef(name, new)),
        ),
        control="old",
        primary=metric("feedback", missing="excluded"),
        guardrails=(
            metric("error", higher_is_better=False, margin=0.1),
            metric("cancelled", higher_is_better=False, margin=0.1),
        ),
        alpha=alpha,
        planned_units=UNITS,
        window=WINDOW_SECONDS,
    )


def start(client: Client, name: str, old: str, new: str, share: float, alpha: float) -> str:
    """Create and start the experiment, unless it is there; returns its name: improve-medical-1-1-0."""
    called = re.sub(r"[^a-z0-9-]+", "-", f"improve-{name}-{new}".lower())[:63].strip("-")
    known: Mapping[str, str] = {one.name: str(one.state) for one in client.experiments.list()}
    if called not in known:
        client.experiments.create(called, plan(name, old, new, share, alpha))
    if known.get(called, "draft").lower() == "draft":
        client.experiments.start(called)
    return called
