"""Adapters and classifiers of this folder, and their votes on requests, without a server."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from router.cli.errors import CliError

if TYPE_CHECKING:
    from router.calibration.ballots import Ballot
    from router.calibration.rows import Row
    from router.plugins.registration import Registration
    from router.routing import BaseModel
    from router.routing.labels import Labels
    from router.types import AdapterProfile, Request, Vote

BATCH = 32
TIMED = 40  # requests asked one by one, for the latency


def read_profiles(dirs: Sequence[Path]) -> tuple[AdapterProfile, ...]:
    """The highest version of each adapter in these folders, by name, as routing knows it."""
    from router.registry.versions import version_key

    found: dict[str, AdapterProfile] = {}
    for folder in (f for d in dirs for f in _folders(d)):
        profile = read_profile(folder)
        known = found.get(profile.name)
        if known is None or version_key(known.version) < version_key(profile.version):
            found[profile.name] = profile
    return tuple(found[name] for name in sorted(found))


def _folders(root: Path) -> Iterator[Path]:
    for child in sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "_"))):
        if (child / "adapter.toml").is_file():
            yield child
        else:
            yield from (p for p in sorted(child.iterdir()) if (p / "adapter.toml").is_file())


def read_profile(folder: Path) -> AdapterProfile:
    """Of one adapter folder. Raises CliError naming what is wrong with its manifest."""
    from router.registry.format.findings import Severity
    from router.registry.format.manifest import parse_manifest

    path = folder / "adapter.toml"
    if not path.is_file():
        raise CliError(f"{folder} has no adapter.toml: routing knows nothing of it")
    manifest, findings = parse_manifest(path.read_bytes(), folder.resolve().name)
    refused = [f for f in findings if f.severity is Severity.REFUSE]
    if refused:
        raise CliError(f"{path}: {refused[0]}")
    return manifest.profile()


@dataclass(frozen=True, slots=True)
class Panel:
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


def fitted(
    registrations: Sequence[Registration], profiles: Sequence[AdapterProfile], base: BaseModel | None = None
) -> Panel:
    """Warm up and fit; one that cannot is left out, and without `base` one that asks for it."""
    from router.routing.faults import place

    kept, skipped = [], {}
    for registration in registrations:
        classifier = registration.classifier
        if registration.wants_base and base is None:
            skipped[registration.name] = "it asks the base model, which --no-base leaves out"
            continue
        try:
            if registration.wants_base and base is not None:
                classifier.bind(base)
            classifier.warmup()
            classifier.fit(profiles)
        except Exception as error:
            skipped[registration.name] = f"{place(error)}: {error}"
        else:
            kept.append(registration)
    return Panel(tuple(kept), skipped)


def collect(
    panel: Panel, profiles: Sequence[AdapterProfile], rows: Sequence[Row], title: str
) -> list[Ballot]:
    """The votes of all classifiers on all rows, with a progress bar on a terminal."""
    from router.calibration.ballots import Ballot
    from router.cli.progress import track
    from router.routing.labels import Labels

    labels = Labels(profiles)
    columns: list[list[Vote]] = []
    for registration in panel.registrations:
        votes: list[Vote] = []
        for i in track(range(0, len(rows), BATCH), f"{title}: {registration.name}"):
            votes += ask(registration, [row.text for row in rows[i : i + BATCH]], labels)
        columns.append(votes)
    return [Ballot(row, votes) for row, votes in zip(rows, zip(*columns, strict=True), strict=True)]


def ask(registration: Registration, texts: Sequence[str], labels: Labels) -> list[Vote]:
    """One batch; a classifier that raises loses these votes."""
    from router.plugins.samples import requests
    from router.plugins.trial import ask as call
    from router.routing.panel import as_vote
    from router.routing.scores import Answer, answers
    from router.types import VoteError

    batch: tuple[Request, ...] = requests(texts)
    started = time.perf_counter()
    try:
        said = answers(call(registration.classifier, batch), len(batch))
    except Exception:
        said = (Answer(error=VoteError.RAISED),) * len(batch)
    took = (time.perf_counter() - started) / len(batch)
    return [as_vote(registration.name, answer, labels, took) for answer in said]


def latencies(panel: Panel, rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Median and 95th percentile of one request alone, seconds, by classifier; a spread of the rows."""
    from router.plugins.samples import requests
    from router.plugins.trial import ask as call

    step = max(1, len(rows) // TIMED)
    found = {}
    for registration in panel.registrations:
        times = []
        for row in rows[::step]:
            batch = requests([row.text])
            started = time.perf_counter()
            call(registration.classifier, batch)
            times.append(time.perf_counter() - started)
        times.sort()
        found[registration.name] = (times[len(times) // 2], times[int(len(times) * 0.95)])
    return found
