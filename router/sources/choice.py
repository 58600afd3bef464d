"""Which files of a source are taken: those that an adapter may have, by their exact names, and nothing else.

A name that a source gives is never written to the disk; it is compared with the list here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from router.errors import AdapterRejected, ResourceExhausted
from router.registry.format import limits
from router.registry.format.findings import Findings
from router.registry.format.folder import (
    CONFIG,
    MANIFEST,
    PICKLES,
    PROBES,
    REPORT,
    SIGNATURE,
    WEIGHTS,
    explain_missing,
)
from router.registry.format.text import some
from router.sources.source import Listing, RemoteFile

# Small ones first: what is wrong with them is known before the weights come.
TAKEN = {
    MANIFEST: limits.MANIFEST_BYTES,
    CONFIG: limits.CONFIG_BYTES,
    PROBES: limits.PROBES_BYTES,
    SIGNATURE: limits.SIGNATURE_BYTES,
    REPORT: limits.REPORT_BYTES,
    "README.md": limits.MIB,
    **dict.fromkeys(("LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt"), limits.MIB),
    "tokenizer.json": 64 * limits.MIB,  # its added tokens are compared with the base's vocabulary
    WEIGHTS: limits.WEIGHTS_BYTES,
}
NEEDED = (
    CONFIG,
    MANIFEST,
    PROBES,
    SIGNATURE,
    WEIGHTS,
)  # without one of these, if there, it is another adapter
CODE = (".py", ".sh", ".ipynb", ".js", ".so", ".exe", ".jar")
UNKNOWN = "no file of an adapter"
KINDS = (
    (PICKLES, "pickle, which runs code when it is read"),
    (CODE, "code"),
    ((".safetensors", ".gguf", ".h5", ".onnx", ".msgpack", ".npz"), "weights, but not the adapter's"),
)


@dataclass(frozen=True, slots=True)
class Left:
    """A file or folder that was not taken, and why."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What is taken, in the order in which it is fetched, and what is left where it is."""

    taken: tuple[RemoteFile, ...]
    left: tuple[Left, ...]

    @property
    def bytes(self) -> int:
        """As many as the source announces."""
        return sum(file.size for file in self.taken)


def choose(listing: Listing, *, report: bool, most: int) -> Choice:
    """What to take of a listing; `report`: the report card, too. Raises AdapterRejected if it is no adapter,
    ResourceExhausted if what is taken has more than `most` bytes.
    """
    plain = {file.name: file for file in listing.files if "/" not in file.name and not file.link}
    _refuse_no_adapter(listing, plain)
    taken, left = [], list(_not_ours(listing))
    for name, bound in TAKEN.items():
        file = plain.get(name)
        if file is None:
            continue
        if name == REPORT and not report:
            left.append(Left(name, "a claim of its author, on which routing would rely; --report takes it"))
        elif file.size <= bound:
            taken.append(file)
        elif name in NEEDED:
            raise AdapterRejected(f"{name} has {file.size} bytes, at most {bound} are allowed")
        else:
            left.append(Left(name, f"has {file.size} bytes, more than {bound}"))
    choice = Choice(tuple(taken), tuple(left))
    if choice.bytes > most:
        text = f"the adapter has {choice.bytes} bytes, at most {most} are fetched; --max-bytes allows more"
        raise ResourceExhausted(text)
    return choice


def _refuse_no_adapter(listing: Listing, plain: dict[str, RemoteFile]) -> None:
    links = [file.name for file in listing.files if file.link and file.name in NEEDED]
    if links:
        raise AdapterRejected(f"{some(links)}: a link, and none is followed; name the folder with the files")
    inside = sorted({f.name.rpartition("/")[0] for f in listing.files if f.name.endswith(f"/{CONFIG}")})
    if CONFIG not in plain and inside:
        raise AdapterRejected(f"the adapter is in a folder: say --subfolder with one of {some(inside, 5)}")
    found = Findings()
    explain_missing(plain, found)
    if found.refused:
        raise AdapterRejected("; ".join(map(str, found)))


def _not_ours(listing: Listing) -> Iterator[Left]:
    folders: dict[str, int] = dict.fromkeys(listing.folders, 0)
    for file in listing.files:
        folder, inside, _ = file.name.partition("/")
        if inside:
            folders[folder] = folders.get(folder, 0) + 1
        elif file.link:
            yield Left(file.name, "a link, and none is followed")
        elif file.name not in TAKEN:
            yield Left(file.name, _kind(file.name))
    for folder, count in folders.items():
        yield Left(f"{folder}/", f"a folder with {count} files" if count else "a folder")


def _kind(name: str) -> str:
    lower = name.lower()
    return next((kind for endings, kind in KINDS if lower.endswith(endings)), UNKNOWN)


def told(left: Sequence[Left]) -> str:
    """What was left on one line, by reason, what could do harm first."""
    names: dict[str, list[str]] = {}
    for one in sorted(left, key=lambda one: one.why == UNKNOWN):
        names.setdefault(one.why, []).append(one.name)
    return "; ".join(f"{some(found)} ({why})" for why, found in names.items())
