"""What the commands `route calibrate | evaluate | diff` share: flags, and the set that they work on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
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
    from router.plugins.registration import Registration
    from router.routing import BaseModel
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


Base = Annotated[
    bool,
    typer.Option("--base/--no-base", help="Load the base for classifiers that ask it, such as probe."),
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


@contextmanager
def open_local(
    adapters_dir: list[Path] | None,
    plugins_dir: list[Path] | None,
    more: Sequence[AdapterProfile] = (),
    base: bool = True,
) -> Iterator[Local]:
    """Read adapters, load plugins, fit; `more` adapters replace those of the same name.

    With `base` the base model is resident inside the block if a classifier asks for it.
    """
    from router.cli.plugins import load_plugins
    from router.cli.route_base import resident_base

    settings = _settings(adapters_dir)
    profiles = _profiles(settings, more)
    registrations = load_plugins(plugins_dir).registrations()
    wanted = base and any(r.wants_base for r in registrations)
    with resident_base(settings) if wanted else nullcontext() as resident:
        yield Local(settings, profiles, _panel(registrations, profiles, resident))


def _settings(adapters_dir: list[Path] | None) -> Settings:
    from router.cli.folders import folders
    from router.cli.settings import load_settings

    said = {"adapters_dir": tuple(adapters_dir)} if adapters_dir else {}
    settings = load_settings(said)
    return settings.model_copy(update={"adapters_dir": folders(settings.adapters_dir, "adapters")})


def _profiles(settings: Settings, more: Sequence[AdapterProfile]) -> tuple[AdapterProfile, ...]:
    from router.cli.errors import CliError
    from router.cli.route_votes import read_profiles

    by_name = {p.name: p for p in (*read_profiles(settings.adapters_dir), *more)}
    if not by_name:
        raise CliError("there are no adapters here: name their folder with --adapters-dir")
    return tuple(by_name[name] for name in sorted(by_name))


def _panel(
    registrations: Sequence[Registration], profiles: Sequence[AdapterProfile], base: BaseModel | None
) -> Panel:
    from router.cli.errors import CliError
    from router.cli.route_votes import fitted

    panel = fitted(registrations, profiles, base)
    for name, why in panel.skipped.items():
        note(f"classifier {name} is left out: {why}")
    if not panel.registrations:
        raise CliError("no classifier can be asked here: `lora-router plugins doctor` says why")
    return panel


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
