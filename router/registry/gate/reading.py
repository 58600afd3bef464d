"""What the gate reads from disk: a folder's report, and the sha256 of weights that were not loaded yet."""

from __future__ import annotations

from pathlib import Path

from router.registry.disk.places import REPORT
from router.registry.format import limits
from router.registry.format.findings import Findings
from router.registry.format.folder import Folder, FolderError
from router.registry.format.parts import find_layout
from router.registry.format.safetensors_header import WEIGHTS
from router.registry.gate.report import Report, ReportError, parse_report


def read_report(path: Path) -> Report | str | None:
    """The report of an adapter folder, or why it cannot be used, or None if there is none. Blocks."""
    try:
        with Folder.open(path) as folder:
            if folder.entry(REPORT) is None:
                return None
            return parse_report(folder.read(REPORT, limits.REPORT_BYTES))
    except FolderError as error:
        return error.message
    except ReportError as error:
        return str(error)


def weights_sha256(path: Path) -> str:
    """sha256 of the weights file of an adapter folder, in hex. Blocks; raises FolderError."""
    with Folder.open(path) as folder:
        nested = find_layout(folder, Findings()).nested
        if not nested:
            return _sha256(folder)
        with folder.subfolder(nested) as inner:
            return _sha256(inner)


def _sha256(folder: Folder) -> str:
    with folder.file(WEIGHTS) as file:
        return file.sha256()
