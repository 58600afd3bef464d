"""What the commands `route calibrate | evaluate | diff` share: flags, and the set that they work on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from router.calibration.ballots import Ballot
    from router.calibration.binding import Binding
    from router.calibration.rows import Row
    from router.cli.route_votes import Panel
    from router.config import Settings
    from router.routing.axes import Axis
    from router.types import AdapterProfile

AdaptersDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapters-dir",
        metavar="DIR",
        help="Adapters folder; repeatable. Default: ./adapters.",
        show_default=False,
    ),
]
PluginsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugins-dir",
        metavar="DIR",
        help="Plugins folder; repeatable. Default: ./plugins.",
        show_default=False,
    ),
]
Ood = Annotated[
    Path | None,
    typer.Option("--ood", metavar="FILE", help="Requests that no adapter should get, JSON lines."),
]


@dataclass(frozen=True, slots=True)
class Local:
    """Settings, adapters and fitted classifiers of this folder."""

    settings: Settings
    profiles: tuple[AdapterProfile, ...]
    panel: Panel

    @property
    def kinds(self) -> dict[str, Axis]:
        """Adapters by name with their axes."""
        from router.routing.axes import axes_of

        return axes_of(self.profiles)

    def binding(self) -> Binding:
        """What a calibration made here is bound to."""
        from router.calibration.binding import bind

        return bind(self.profiles, self.panel.fingerprints(), self.settings.model)

    def votes(self, rows: Sequence[Row], title: str) -> list[Ballot]:
        """Of all classifiers."""
        from router.cli.route_votes import collect

        return collect(self.panel, self.profiles, rows, title)


def open_local(
    adapters_dir: list[Path] | None, plugins_dir: list[Path] | None, more: Sequence[AdapterProfile] = ()
) -> Local:
    """Read adapters, load plugins, fit; `more` adapters replace those of the same name."""
    from router.cli.errors import CliError
    from router.cli.folders import folders
    from router.cli.plugins import load_plugins
    from router.cli.route_votes import fitted, read_profiles
    from router.cli.settings import load_settings

    said = {"adapters_dir": tuple(adapters_dir)} if adapters_dir else {}
    settings = load_settings(said)
    dirs = folders(settings.adapters_dir, "adapters")
    settings = settings.model_copy(update={"adapters_dir": dirs})
    by_name = {p.name: p for p in (*read_profiles(dirs), *more)}
    if not by_name:
        raise CliError("there are no adapters here: name their folder with --adapters-dir")
    profiles = tuple(by_name[name] for name in sorted(by_name))
    panel = fitted(load_plugins(plugins_dir).registrations(), profiles)
    for name, why in panel.skipped.items():
        note(f"classifier {name} is left out: {why}")
    if not panel.registrations:
        raise CliError("no classifier can be asked here: `lora-router plugins doctor` says why")
    return Local(settings, profiles, panel)


def note(text: str) -> None:
    """A word on stderr."""
    print(text, file=sys.stderr)


def read_known(files: Sequence[Path], profiles: Sequence[AdapterProfile]) -> list[Row]:
    """Labelled requests of these files, each once, without those that the classifiers learned from."""
    from router.calibration.rows import distinct, read_rows

    names = {p.name for p in profiles}
    return _unseen(distinct(row for path in files for row in read_rows(path, names)), profiles)


def read_strange(path: Path | None, profiles: Sequence[AdapterProfile]) -> list[Row]:
    """Out-of-distribution requests; a label may be left out."""
    from router.calibration.rows import distinct, read_rows

    if path is None:
        return []
    return _unseen(distinct(read_rows(path, {p.name for p in profiles}, "")), profiles)


def _unseen(rows: list[Row], profiles: Sequence[AdapterProfile]) -> list[Row]:
    from router.calibration.rows import unseen

    kept = unseen(rows, {t for p in profiles for t in (*p.examples, *p.negative_examples)})
    if len(kept) < len(rows):
        note(f"{len(rows) - len(kept)} requests are examples of an adapter and are left out")
    return kept
