"""`lora-router adapters improve NAME`: from feedback to a better version that serves (docs/improve.md).

`run` has the steps, `state` what is known of a run, `records` and `rows` read feedback and make rows,
`recipes` writes the recipe, `processes` runs training and comparison below everything else, `rule` decides,
`canary` puts a version before users, and `overview` is what the console shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from router.hookspecs import RegisterSettings, hookimpl

if TYPE_CHECKING:
    import typer

    from router.feedback.store import FeedbackStore
    from router.server.app import ServerApp


class ImproveSettings(BaseModel):
    """The table [improve]."""

    model_config = ConfigDict(frozen=True)

    enabled: bool = Field(False, description="the console may start runs, which train on this machine")
    work: Path = Field(Path("runs/improve"), description="folder of the runs, which the console shows")
    recipes: Path = Field(Path("recipes"), description="folder of the adapters' recipes")


@hookimpl
def register_settings(register: RegisterSettings) -> None:
    """`[improve]`."""
    register(ImproveSettings)


@hookimpl
def register_commands(app: typer.Typer) -> None:
    """`adapters improve`."""
    from router.cli.command import group
    from router.extensions.improve.commands import improve

    app.add_typer(group("Adapter folders here.", improve=improve), name="adapters")


@hookimpl
def on_startup(server: ServerApp, settings: ImproveSettings) -> None:
    """The console may show runs, and start one where the operator allows it."""
    from router.extensions.improve.overview import Runs

    off = "" if settings.enabled else "the setting `improve.enabled` is off: run the command on this machine"
    folders = [str(place) for place in server.settings.adapter_folders[:1]]
    flags = ["--server", server.settings.listen, "--work", str(settings.work), "--promote", "no"]
    flags += ["--recipes", str(settings.recipes), *(["--adapters-dir", folders[0]] if folders else [])]

    def store() -> FeedbackStore | None:
        return server.feedback.store if server.feedback is not None else None

    server.improvements = Runs(settings.work, flags, off, store)


@hookimpl
def on_shutdown(server: ServerApp) -> None:
    """End the runs that were started from here; they go on later."""
    from router.extensions.improve.overview import Runs

    if isinstance(server.improvements, Runs):
        server.improvements.close()
