"""What `route calibrate | evaluate | diff` share: adapters and classifiers of this folder, with no server."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router.built_in import is_built_in
from router.cli.command import CliError

if TYPE_CHECKING:
    from router.calibration.model import Axis, Binding
    from router.classifiers.contract import Registration
    from router.config import Settings
    from router.engine.base import Engine
    from router.extensions.calibration.rows import Ballot, DataRow
    from router.extensions.calibration.stored_votes import StoredVotes
    from router.routing import BaseModel
    from router.routing.chain import FitProfiles, Labels
    from router.types import AdapterProfile, Request, Vote

PATIENCE_SECONDS = 600.0  # nobody waits for a single request here
BATCH = 32  # requests asked together
TIMED = 40  # requests asked one by one, for the latency
Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="Labelled requests, JSON lines.", show_default=False)
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
KeptIn = Annotated[
    Path | None,
    typer.Option(
        "--votes",
        metavar="FILE",
        help="Keep votes here; a classifier is not asked again for a request whose vote is there.",
        show_default=False,
    ),
]
Base = Annotated[
    bool,
    typer.Option("--base/--no-base", help="Load the base for classifiers that ask it, such as probe."),
]


@dataclass(frozen=True, slots=True)
class LocalRouting:
    """Settings, adapters and fitted classifiers of this folder; `learned` are labelled requests that these
    learned beside the examples."""

    settings: Settings
    profiles: tuple[AdapterProfile, ...]
    fitted: FittedClassifiers
    learned: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def taught(self) -> tuple[AdapterProfile, ...]:
        """The adapters with all that classifiers learned of them."""
        from router.calibration.model import with_learned

        return with_learned(self.profiles, self.learned)

    @property
    def kinds(self) -> dict[str, Axis]:
        """Adapters by name with their axes."""
        from router.calibration.model import axes_of

        return axes_of(self.profiles)

    def binding(self) -> Binding:
        """What a calibration made here is bound to."""
        from router.calibration.model import binding_of

        return binding_of(self.profiles, self.fitted.fingerprints(), self.settings.model)

    def votes(self, rows: Sequence[DataRow], title: str, kept_in: Path | None = None) -> list[Ballot]:
        """Of all classifiers on all rows, with a progress bar on a terminal. Those that the file has under
        the same adapters, classifier and base come from there, the others are added to it."""
        from router.calibration.model import binding_of
        from router.extensions.calibration.rows import Ballot
        from router.extensions.calibration.stored_votes import StoredVotes

        made_by = binding_of(self.taught, self.fitted.fingerprints(), self.settings.model)
        kept = None if kept_in is None else StoredVotes(kept_in, made_by)
        columns: list[list[Vote]] = []
        for registration in self.fitted.registrations:
            columns.append(self._column(registration, rows, title, kept))
            if kept is not None:  # what was asked for minutes outlives an interruption
                kept.save()
        return [Ballot(row, votes) for row, votes in zip(rows, zip(*columns, strict=True), strict=True)]

    def _column(
        self, registration: Registration, rows: Sequence[DataRow], title: str, kept: StoredVotes | None
    ) -> list[Vote]:
        """Of one classifier."""
        from router.cli.output import track
        from router.routing.chain import Labels

        labels, name = Labels(self.profiles), registration.name
        found = {row.text: vote for row in rows if kept and (vote := kept.get(name, row.text)) is not None}
        texts = [row.text for row in rows if row.text not in found]
        for i in track(range(0, len(texts), BATCH), f"{title}: {name}"):
            part = texts[i : i + BATCH]
            for text, vote in zip(part, ask_batch(registration, part, labels), strict=True):
                found[text] = kept.keep(text, vote) if kept else vote
        return [found[row.text] for row in rows]


@contextmanager
def open_local(
    adapters_dir: list[Path] | None,
    plugins_dir: list[Path] | None,
    more: Sequence[AdapterProfile] = (),
    base: bool = True,
    calibration: str | None = None,
    learned_by: str = "",
) -> Iterator[LocalRouting]:
    """Read adapters, load plugins, fit; `more` adapters replace those of the same name.

    With a `calibration` (a file, "auto", or "" for none) everybody learns what a server with it would have
    them learn. Without, all learn all, with the labelled requests that the calibration `learned_by` learned,
    and classifiers that scale, which speak for adapters that are in no calibration, are left out. Those for
    other languages are left out in any case: a calibration says nothing of such requests.

    With `base` the base model is resident inside the block if a classifier asks for it.
    """
    from router.calibration.model import with_learned
    from router.cli.plugins import load_plugins
    from router.cli.settings import load_calibration, rule_of
    from router.routing.chain import FitProfiles

    settings = _settings(adapters_dir)
    profiles = _profiles(settings, more)
    registrations = tuple(r for r in load_plugins(plugins_dir).registrations() if not r.classifier.foreign)
    of = load_calibration(settings.model_copy(update={"calibration": learned_by}))
    learned = of.learned if of is not None else {}
    taught = with_learned(profiles, learned)
    if calibration is None:
        registrations = tuple(r for r in registrations if not r.classifier.scales)
    else:
        taught = rule_of(settings.model_copy(update={"calibration": calibration})).taught(profiles)
    wanted = base and any(r.wants_base for r in registrations)
    with resident_base(settings) if wanted else nullcontext() as resident:
        fitted = _fitted(registrations, FitProfiles(profiles, taught), resident)
        yield LocalRouting(settings, profiles, fitted, learned)


@dataclass(frozen=True, slots=True)
class Fitting:
    """Adapters and classifiers of this folder, to be fitted as often as wanted; only the last fit votes."""

    settings: Settings
    profiles: tuple[AdapterProfile, ...]
    registrations: Sequence[Registration]
    base: BaseModel | None

    def fitted(
        self, profiles: tuple[AdapterProfile, ...], learned: Mapping[str, tuple[str, ...]] | None = None
    ) -> LocalRouting:
        """The classifiers, once all of them have learned these adapters, and `learned` beside."""
        from router.calibration.model import with_learned
        from router.routing.chain import FitProfiles

        taught = with_learned(profiles, learned or {})
        fitted = _fitted(self.registrations, FitProfiles(taught, taught), self.base)
        return LocalRouting(self.settings, profiles, fitted, learned or {})


@contextmanager
def open_fitting(
    adapters_dir: list[Path] | None, plugins_dir: list[Path] | None, base: bool = True
) -> Iterator[Fitting]:
    """As `open_local` without a calibration, and not fitted yet."""
    from router.cli.plugins import load_plugins

    settings = _settings(adapters_dir)
    profiles = _profiles(settings, ())
    registrations = [
        r
        for r in load_plugins(plugins_dir).registrations()
        if not (r.classifier.scales or r.classifier.foreign)
    ]
    wanted = base and any(r.wants_base for r in registrations)
    with resident_base(settings) if wanted else nullcontext() as resident:
        yield Fitting(settings, profiles, registrations, resident)


def _settings(adapters_dir: list[Path] | None) -> Settings:
    from router.cli.settings import load_settings, places

    said = {"adapters_dir": tuple(adapters_dir)} if adapters_dir else {}
    settings = load_settings(said)
    return settings.model_copy(update={"adapters_dir": places(settings)})


def _profiles(settings: Settings, more: Sequence[AdapterProfile]) -> tuple[AdapterProfile, ...]:
    by_name = {p.name: p for p in (*read_profiles(settings.adapter_folders), *more)}
    if not by_name:
        raise CliError("there are no adapters here: name their folder with --adapters-dir")
    return tuple(by_name[name] for name in sorted(by_name))


def _fitted(
    registrations: Sequence[Registration], profiles_to_fit: FitProfiles, base: BaseModel | None
) -> FittedClassifiers:
    fitted = fit_classifiers(registrations, profiles_to_fit, base)
    for name, why in fitted.skipped.items():
        note(f"classifier {name} is left out: {why}")
    if not fitted.registrations:
        raise CliError("no classifier can be asked here: `lora-router plugins doctor` says why")
    return fitted


def note(text: str) -> None:
    """A word on stderr."""
    print(text, file=sys.stderr)


# -- adapters


def read_profiles(dirs: Sequence[Path]) -> tuple[AdapterProfile, ...]:
    """The highest version of each adapter in these folders, by name, as routing knows it."""
    return tuple(profile for profile, _ in find_profiles(dirs).values())


def find_profiles(dirs: Sequence[Path]) -> dict[str, tuple[AdapterProfile, Path]]:
    """The same by name, each with its folder."""
    from router.names import version_key

    found: dict[str, tuple[AdapterProfile, Path]] = {}
    for folder in _folders(dirs):
        profile = read_profile(folder)
        known = found.get(profile.name)
        if known is None or version_key(known[0].version) < version_key(profile.version):
            found[profile.name] = profile, folder
    return {name: found[name] for name in sorted(found)}


def _folders(dirs: Sequence[Path]) -> Iterator[Path]:
    """Of all versions. As in a server, a folder overrides a later built-in one of its name."""
    seen: set[str] = set()
    for root in dirs:
        children = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_")))
        for child in children:
            if child.name in seen and is_built_in(child, "adapters"):
                continue
            if (child / "adapter.toml").is_file():
                yield child
            else:
                yield from (p for p in sorted(child.iterdir()) if (p / "adapter.toml").is_file())
        seen.update(child.name for child in children)


def read_profile(folder: Path) -> AdapterProfile:
    """Of one adapter folder. Raises CliError naming what is wrong with its manifest."""
    from router.registry.format.manifest import parse_manifest
    from router.registry.format.untrusted import Severity

    path = folder / "adapter.toml"
    if not path.is_file():
        raise CliError(f"{folder} has no adapter.toml: routing knows nothing of it")
    manifest, findings = parse_manifest(path.read_bytes(), folder.resolve().name)
    refused = [f for f in findings if f.severity is Severity.REFUSE]
    if refused:
        raise CliError(f"{path}: {refused[0]}")
    return manifest.profile()


# -- classifiers and their votes


@dataclass(frozen=True, slots=True)
class FittedClassifiers:
    """Classifiers that were fitted to the adapters, in order, and those left out with the reason."""

    registrations: tuple[Registration, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """In the order in which they are asked."""
        return tuple(r.name for r in self.registrations)

    def fingerprints(self) -> dict[str, str]:
        """What a calibration is bound to."""
        return {r.name: r.classifier.fingerprint() for r in self.registrations}


def fit_classifiers(
    registrations: Sequence[Registration], profiles_to_fit: FitProfiles, base: BaseModel | None = None
) -> FittedClassifiers:
    """Warm up and fit; one that cannot is left out, and without `base` one that asks for it."""
    from router.classifiers.isolation import fault_of

    kept, skipped = [], {}
    for registration in registrations:
        classifier = registration.classifier
        if registration.wants_base and base is None:
            skipped[registration.name] = "it asks the base model, which --no-base leaves out"
            continue
        if lacking := classifier.lacks():
            skipped[registration.name] = lacking
            continue
        try:
            if registration.wants_base and base is not None:
                classifier.bind(base)
            classifier.warmup()
            classifier.fit(profiles_to_fit.of(registration))
        except Exception as error:
            skipped[registration.name] = f"{fault_of(error)}: {error}"
        else:
            kept.append(registration)
    return FittedClassifiers(tuple(kept), skipped)


def ask_batch(registration: Registration, texts: Sequence[str], labels: Labels) -> list[Vote]:
    """One batch; a classifier that raises loses these votes."""
    from router.classifiers.contract import ClassifierAnswer, read_answers
    from router.plugins.doctor import call_classifier, requests_of
    from router.routing.chain import as_vote
    from router.types import VoteError

    batch: tuple[Request, ...] = requests_of(texts)
    started = time.perf_counter()
    try:
        said = read_answers(call_classifier(registration.classifier, batch), len(batch))
    except Exception:
        said = (ClassifierAnswer(error=VoteError.RAISED),) * len(batch)
    took = (time.perf_counter() - started) / len(batch)
    return [as_vote(registration.name, answer, labels, took) for answer in said]


def latencies(fitted: FittedClassifiers, rows: Sequence[DataRow]) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of one request alone, seconds, by classifier; a spread of the rows."""
    from router.plugins.doctor import call_classifier, requests_of

    step = max(1, len(rows) // TIMED)
    found = {}
    for registration in fitted.registrations:
        times = []
        for row in rows[::step]:
            batch = requests_of([row.text])
            started = time.perf_counter()
            call_classifier(registration.classifier, batch)
            times.append(time.perf_counter() - started)
        times.sort()
        found[registration.name] = (times[len(times) // 2], times[int(len(times) * 0.95)])
    return found


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


# -- labelled requests


def read_known(files: Sequence[Path], profiles: Sequence[AdapterProfile]) -> list[DataRow]:
    """Labelled requests of these files, each once, without those that the classifiers learned from."""
    from router.extensions.calibration.rows import distinct, read_rows

    names = {p.name for p in profiles}
    return _unseen(distinct(row for path in files for row in read_rows(path, names)), profiles)


def read_strange(path: Path | None, profiles: Sequence[AdapterProfile]) -> list[DataRow]:
    """Out-of-distribution requests; a label may be left out."""
    from router.extensions.calibration.rows import distinct, read_rows

    if path is None:
        return []
    return _unseen(distinct(read_rows(path, {p.name for p in profiles}, "")), profiles)


def _unseen(rows: list[DataRow], profiles: Sequence[AdapterProfile]) -> list[DataRow]:
    from router.extensions.calibration.rows import unseen

    kept = unseen(rows, {t for p in profiles for t in (*p.examples, *p.negative_examples)})
    if len(kept) < len(rows):
        note(f"{len(rows) - len(kept)} requests are examples of an adapter and are left out")
    return kept
