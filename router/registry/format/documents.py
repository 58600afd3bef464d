"""Files of an adapter's folder that are for people: its report card with pictures, its manifest, its probes.

They are read when somebody looks at them, by name and up to a size, and are part of no digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from router.registry.format import limits
from router.registry.format.folder import MANIFEST, PROBES, REPORT, Folder, FolderError

PICTURE_BYTES = limits.MIB
DOCUMENTS: Mapping[str, int] = {  # and the most bytes of each
    REPORT: limits.REPORT_BYTES,
    MANIFEST: limits.MANIFEST_BYTES,
    PROBES: limits.PROBES_BYTES,
    "curves.png": PICTURE_BYTES,
    "generalization.png": PICTURE_BYTES,
    "bias.png": PICTURE_BYTES,
    "data_need.png": PICTURE_BYTES,
}


def read_document(path: Path, name: str) -> bytes | None:
    """One of `DOCUMENTS` in the folder at `path`; None where it is not there or cannot be read. Blocks."""
    if name not in DOCUMENTS:
        return None
    try:
        with Folder.open(path) as folder:
            return folder.read(name, DOCUMENTS[name])
    except FolderError:
        return None
