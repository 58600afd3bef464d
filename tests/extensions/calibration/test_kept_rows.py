"""The requests that a calibration keeps beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import CalibrationError
from router.extensions.calibration.kept_rows import MOST_FIT, MOST_PROOF, KeptRows, digest, path_of, read_kept
from router.extensions.calibration.rows import LabelledRow

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ROWS = st.lists(
    st.builds(LabelledRow, TEXTS, st.sampled_from(["legal", "medical", ""]), TEXTS, TEXTS), max_size=5
)


@given(fit=ROWS, known=ROWS, strange=ROWS)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    fit: list[LabelledRow],
    known: list[LabelledRow],
    strange: list[LabelledRow],
) -> None:
    path = tmp_path_factory.mktemp("kept") / "calibration.json"
    kept = KeptRows.of(fit, known, strange)
    data = kept.written()
    path_of(path).write_bytes(data)
    assert read_kept(path, digest(data)) == kept


def test_no_more_are_kept_than_a_file_holds() -> None:
    rows = [LabelledRow(f"request {n}", "legal") for n in range(4000)]
    kept = KeptRows.of(rows, rows, rows)
    assert (len(kept.fit), len(kept.known), len(kept.strange)) == (MOST_FIT, MOST_PROOF, MOST_PROOF)
    assert KeptRows.of(rows, rows, rows) == kept


def test_a_calibration_without_rows_has_none(tmp_path: Path) -> None:
    assert read_kept(tmp_path / "calibration.json", "") is None
    assert read_kept(tmp_path / "calibration.json", digest(b"")) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"part": "x"}', b'{"part": "fit"}', b"1", b"\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path_of(path).write_bytes(content)
    with pytest.raises(CalibrationError, match="requests of another calibration"):
        read_kept(path, digest(b""))
    with pytest.raises(CalibrationError, match=r"calibration.rows.jsonl is damaged"):
        read_kept(path, digest(content))
