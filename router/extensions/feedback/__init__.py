"""Feedback on answers, kept in a database while a server runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterService, RegisterSettings
from router.markers import hookimpl
from router.types import Keeping

if TYPE_CHECKING:
    from router.feedback.store import FeedbackStore
    from router.server.app import ServerApp


class FeedbackSettings(BaseModel):
    """The table [feedback]."""

    model_config = ConfigDict(frozen=True)

    keep: Keeping = Field(
        "labels",
        description="feedback on answers that is kept: off, labels (the verdict), or texts (the requests and "
        "answers, too)",
    )
    days: int = Field(90, ge=1, le=3650, description="days after which feedback is deleted")


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[feedback]`."""
    register(FeedbackSettings)


@hookimpl
async def on_startup(server: ServerApp, settings: FeedbackSettings) -> None:
    """Remember answers, unless the server has a recorder already. Raises ConfigError for a URL that cannot
    work."""
    from router.extensions.feedback.service import FeedbackCollector
    from router.feedback.recorder import FeedbackRecorder

    recorder = server.part(FeedbackRecorder)
    if recorder is None and settings.keep != "off":

        def outcome(response_id: str, value: float) -> None:
            if server.pipeline.experiments is not None:
                server.pipeline.experiments.feedback(response_id, value)

        store = store_of(server)
        server.provide(recorder := FeedbackRecorder(store, settings.keep, settings.days, outcome))
    if recorder is not None:
        server.pipeline.begun.append(recorder.answers.begun)
        server.metrics.registry.register(FeedbackCollector(recorder))
        server.follow("old feedback", recorder.follow)


@hookimpl
def register_service(register: RegisterService, server: ServerApp) -> None:
    """FeedbackService; where feedback is off it refuses."""
    from router.extensions.feedback.service import OFF, ROWS, FeedbackService
    from router.feedback.recorder import FeedbackRecorder
    from router.server.policy import ServiceSpec
    from router.server.registration import Refusing
    from router.v1.feedback_pb2_grpc import add_FeedbackServiceServicer_to_server

    kept = server.part(FeedbackRecorder)
    servicer = FeedbackService(kept, server.registry) if kept is not None else Refusing(OFF)
    register(ServiceSpec(add_FeedbackServiceServicer_to_server, servicer, ROWS))


@hookimpl
async def on_shutdown(server: ServerApp) -> None:
    """Write what is left."""
    from router.feedback.recorder import FeedbackRecorder

    if (recorder := server.part(FeedbackRecorder)) is not None:
        await asyncio.to_thread(recorder.close)


def store_of(server: ServerApp) -> FeedbackStore:
    """In PostgreSQL, where the setting `database` names one; else a SQLite file in the state folder, of
    feedback alone: it is rebuilt when some is deleted. Raises ConfigError for a URL that cannot work."""
    from router.feedback.store import FeedbackStore
    from router.shared.database import parse_url

    url = server.settings.database
    if not url or parse_url(url).get_backend_name() == "sqlite":
        return FeedbackStore.in_folder(server.state_dir)
    return FeedbackStore(url)
