"""What is in a folder: where the adapter is, what is ignored, and what other formats look like."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from router.registry.format.codes import Code
from router.registry.format.config_values import CONFIG
from router.registry.format.findings import Findings
from router.registry.format.folder import Entry, Folder, FolderError
from router.registry.format.probes import PROBES
from router.registry.format.safetensors_header import WEIGHTS
from router.registry.format.table import MANIFEST
from router.registry.format.text import some

OURS = (MANIFEST, CONFIG, WEIGHTS, PROBES)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SHARD = re.compile(
    r"(model|pytorch_model|consolidated|ft-model)[._-].*|(model|pytorch_model)\.(safetensors|bin)"
)
_BASE_FILES = frozenset({"config.json", "generation_config.json", "model.safetensors.index.json"})
RESAVE = "load it where you trust it and save it again with PEFT's save_pretrained, which writes safetensors"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the parts are. `nested` is the subfolder that holds configuration and weights, or ''."""

    nested: str
    entries: Mapping[str, Entry]  # of the folder itself
    inner: Mapping[str, Entry]  # of the folder that holds configuration and weights

    def fingerprint(self) -> str:
        """A cheap change detector: names, sizes, mtimes and inodes of what counts; names of the rest."""
        digest = hashlib.sha256()
        for listing in (self.entries, self.inner if self.nested else {}):
            whole = CONFIG not in listing  # an adapter may yet appear in any part of it
            for name, e in sorted(listing.items()):
                count = whole or name in OURS
                fields = (e.mode, e.size, e.mtime_ns, e.inode) if count else ()
                digest.update(repr((name, fields)).encode("utf-8", "surrogateescape"))
            digest.update(b";")
        return digest.hexdigest()


def find_layout(folder: Folder, found: Findings) -> Layout:
    """Find the adapter in `folder`; what is missing is refused. Raises FolderError."""
    entries = folder.entries()
    nested = "" if CONFIG in entries else _nested(folder, entries, found)
    if nested is None or (not nested and CONFIG not in entries):
        if nested is not None:
            _explain_absence(entries, found)
        return Layout("", entries, {})
    inner = entries if not nested else _entries_of(folder, nested)
    if WEIGHTS not in inner:
        _explain_no_weights(inner, found)
    _note_ignored(inner, found)
    return Layout(nested, entries, inner)


def _entries_of(folder: Folder, name: str) -> Mapping[str, Entry]:
    with folder.subfolder(name) as inner:
        return inner.entries()


def _nested(folder: Folder, entries: Mapping[str, Entry], found: Findings) -> str | None:
    """The one subfolder with an adapter, '' if there is none, None (refused) if there are several."""
    names = [name for name, entry in entries.items() if entry.is_folder and _has_config(folder, name)]
    if len(names) > 1:
        message = f"holds several adapters ({some(names)}); move the one to serve up, or make each a folder"
        found.refuse(Code.SEVERAL_ADAPTERS, message)
        return None
    if names:
        found.note(Code.NESTED_FOLDER, f"the adapter is read from the subfolder {some(names)}")
    return names[0] if names else ""


def _has_config(folder: Folder, name: str) -> bool:
    try:
        with folder.subfolder(name) as inner:
            return inner.entry(CONFIG) is not None
    except FolderError:
        return False


def _is_merged(name: str) -> bool:
    return name in _BASE_FILES or _SHARD.fullmatch(name) is not None


def _explain_absence(entries: Mapping[str, Entry], found: Findings) -> None:
    names = list(entries)
    if any(name.endswith(".gguf") for name in names):
        found.refuse(
            Code.GGUF_WEIGHTS, "GGUF adapters cannot be served; keep the PEFT folder it was made from"
        )
    elif WEIGHTS in entries:
        found.refuse(Code.NO_ADAPTER, f"{CONFIG} is missing; copy the whole folder that PEFT saved")
    elif any(name.startswith("pytorch_lora_weights") for name in names):
        found.refuse(Code.KEYS_IMAGE_MODEL, "holds a LoRA of an image model (diffusers)")
    elif any(_is_merged(name) for name in names):
        found.refuse(Code.MERGED_MODEL, f"holds a merged model and no {CONFIG}; export the adapter instead")
    elif any(name.endswith(PICKLES) for name in names):
        found.refuse(Code.PICKLE_WEIGHTS, f"pickle files are never loaded; {RESAVE}")
    else:
        lone = "; a lone weights file is usually a LoRA of an image model (kohya, diffusers)"
        hint = lone if any(name.endswith(".safetensors") for name in names) else ""
        found.refuse(Code.NO_ADAPTER, f"has no {CONFIG}: not an adapter folder as PEFT saves it{hint}")


def _explain_no_weights(entries: Mapping[str, Entry], found: Findings) -> None:
    pickles = [name for name in entries if name.startswith("adapter_model") and name.endswith(PICKLES)]
    if any(name.endswith(".gguf") for name in entries):
        found.refuse(
            Code.GGUF_WEIGHTS, "GGUF adapters cannot be served; keep the PEFT folder it was made from"
        )
    elif pickles:
        found.refuse(Code.PICKLE_WEIGHTS, f"{some(pickles)}: pickle files are never loaded; {RESAVE}")
    elif any(_is_merged(name) for name in entries):
        found.refuse(Code.MERGED_MODEL, f"holds a merged model and no {WEIGHTS}; export the adapter instead")
    else:
        found.refuse(Code.NO_WEIGHTS, f"{WEIGHTS} is missing")


def _note_ignored(entries: Mapping[str, Entry], found: Findings) -> None:
    base = [name for name in entries if _is_merged(name)]
    if base:
        found.note(Code.FILES_IGNORED, f"base files ignored: {some(base)}")
    if "chat_template.jinja" in entries:
        message = f"chat_template.jinja is not used: [prompt] of {MANIFEST} or the base's own template is"
        found.note(Code.FILES_IGNORED, message)
    pickles = [name for name in entries if name.endswith(PICKLES) and not _is_merged(name)]
    if pickles and WEIGHTS in entries:
        found.note(Code.FILES_IGNORED, f"pickle files ignored: {some(pickles)}")
