"""The labelled requests that a calibration keeps in a file beside it, so that it can be proven again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.calibration.model import CalibrationError
from router.extensions.calibration.rows import LabelledRow
from router.reread import read_file

MOST_BYTES = 16 << 20
MOST_FIT = 300  # of the rows that weights were fitted on
MOST_PROOF = 3000  # of labelled and of strange rows
DIGEST = "rows"  # in a calibration's report: sha256 of the file


@dataclass(frozen=True, slots=True)
class KeptRows:
    """`fit` are labelled rows that weights were fitted on; `known` and `strange` are for the proof."""

    fit: tuple[LabelledRow, ...]
    known: tuple[LabelledRow, ...]
    strange: tuple[LabelledRow, ...]

    @classmethod
    def of(
        cls, fit: Sequence[LabelledRow], known: Sequence[LabelledRow], strange: Sequence[LabelledRow]
    ) -> KeptRows:
        """At most so many as a file keeps, drawn by a hash."""
        return cls(_drawn(fit, MOST_FIT), _drawn(known, MOST_PROOF), _drawn(strange, MOST_PROOF))

    def written(self) -> bytes:
        """As JSON lines."""
        parts = (("fit", self.fit), ("proof", self.known), ("strange", self.strange))
        return b"".join(_line(part, row) for part, rows in parts for row in rows)


def path_of(calibration: Path) -> Path:
    """Of the rows of that calibration file."""
    return calibration.with_name(f"{calibration.stem}.rows.jsonl")


def digest(data: bytes) -> str:
    """What a calibration's report has of its rows."""
    return hashlib.sha256(data).hexdigest()


def read_kept(calibration: Path, wanted: str) -> KeptRows | None:
    """The rows beside that calibration, which must have the digest `wanted`. None where there are none.

    Raises CalibrationError for rows of another calibration and for a file that is something else.
    """
    path = path_of(calibration)
    if not wanted or not path.exists():
        return None
    try:
        data = read_file(path, MOST_BYTES)
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror}") from None
    if digest(data) != wanted:
        raise CalibrationError(
            f"{path} has the requests of another calibration: run `lora-router route calibrate` again"
        )
    found: dict[str, list[LabelledRow]] = {"fit": [], "proof": [], "strange": []}
    try:
        for line in data.decode().split("\n"):
            if line:
                said = json.loads(line)
                found[said.pop("part")].append(LabelledRow(**said))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{path} is damaged: {type(error).__name__}: {error}") from None
    return KeptRows(tuple(found["fit"]), tuple(found["proof"]), tuple(found["strange"]))


def _line(part: str, row: LabelledRow) -> bytes:
    said: dict[str, Any] = {"part": part, "text": row.text, "label": row.label}
    said |= {name: value for name in ("source", "group") if (value := getattr(row, name))}
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _drawn(rows: Sequence[LabelledRow], most: int) -> tuple[LabelledRow, ...]:
    if len(rows) <= most:
        return tuple(rows)
    order = sorted(range(len(rows)), key=lambda i: _key(rows[i].text))
    return tuple(rows[i] for i in sorted(order[:most]))


def _key(text: str) -> bytes:
    return hashlib.sha256(f"kept {text}".encode("utf-8", "surrogatepass")).digest()
