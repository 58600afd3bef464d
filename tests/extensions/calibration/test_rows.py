"""Labelled requests: what is read, left out and split, and what is stored beside a calibration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.calibration.model import CalibrationError
from router.corrections.store import Correction, CorrectionStore, file_name
from router.extensions.calibration.rows import (
    MOST_FIT,
    MOST_PROOF,
    Ballot,
    DataRow,
    StoredRows,
    digest,
    distinct,
    one_of_each,
    path_of,
    read_rows,
    read_stored,
    stratified_folds,
    stratified_split,
    unseen,
)

NAMES = ("legal", "medical")


def written(folder: Path, text: str) -> Path:
    path = folder / "requests.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"text": "a", "label": "legal", "source": "s"}\n\n{"text": "b", "label": "", "more": 1}\n'
    )
    assert read_rows(path, NAMES) == [DataRow("a", "legal", "s"), DataRow("b", "")]
    assert read_rows(written(tmp_path, '{"text": "a", "group": "g"}'), NAMES, "") == [
        DataRow("a", "", group="g")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: write one request a line"),
        ("\n \n", "is empty"),
        ('{"text": "a", "label": "lega"}', r":1: no adapter is called 'lega'; there are legal, medical"),
        ('{"text": "a", "label": "legal"}\n{"text": "b"}', r':2: needs a "label"'),
        ('{"text": "a", "label": 3}', 'needs a "label"'),
        ('{"text": " ", "label": "legal"}', 'needs a "text" that is not empty'),
        ("[1]", 'needs a "text"'),
        ("{text}", r":1: not JSON"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_rows(written(tmp_path, text), NAMES)


def test_a_line_ends_where_json_lines_do(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one\u2028two\u0085", "label": "a"}\r\n', encoding="utf-8", newline="")
    assert [row.text for row in read_rows(file, {"a"})] == ["one\u2028two\u0085"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No such file"):
        read_rows(tmp_path / "none.jsonl", NAMES)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match="not UTF-8: byte 0"):
        read_rows(tmp_path / "bytes", NAMES)


def test_a_text_counts_once_and_has_one_label() -> None:
    assert distinct([DataRow("a  b", "legal"), DataRow("a b", "legal", "again")]) == [
        DataRow("a  b", "legal")
    ]
    with pytest.raises(CalibrationError, match="labelled both 'legal' and 'medical'"):
        distinct([DataRow("a b", "legal"), DataRow("a\nb", "medical")])


def test_what_classifiers_learned_from_is_left_out() -> None:
    rows = [DataRow("a b", "legal"), DataRow("c", "legal")]
    assert unseen(rows, {"a  b"}) == rows[1:]


def test_a_split_keeps_the_share_of_each_label_and_does_not_depend_on_order() -> None:
    rows = [DataRow(f"request {i}", NAMES[i % 3 == 0]) for i in range(90)]
    first, rest = stratified_split(rows, 1 / 3)
    assert sorted(first + rest) == list(range(90))
    assert [sum(rows[i].label == n for i in first) for n in NAMES] == [20, 10]
    other, _ = stratified_split(rows[::-1], 1 / 3)
    assert {rows[i].text for i in first} == {rows[::-1][i].text for i in other}


def test_folds_are_even() -> None:
    rows = [DataRow(f"request {i}", NAMES[i % 2]) for i in range(22)]
    folds = stratified_folds(rows, 5)
    assert sorted(i for fold in folds for i in fold) == list(range(22))
    assert all(len(fold) in (4, 5) for fold in folds)


def test_a_group_is_never_split() -> None:
    rows = [DataRow(f"question {i} on {i % 60}", NAMES[i % 2], group=str(i % 60)) for i in range(300)]
    rows += [DataRow(f"request {i}", NAMES[i % 2]) for i in range(90)]
    first, rest = stratified_split(rows, 1 / 3)
    assert sorted(first + rest) == list(range(390))
    assert not {rows[i].group for i in first} & {rows[i].group for i in rest} - {""}
    assert 60 < sum(bool(rows[i].group) for i in first) < 140
    folds = stratified_folds(rows, 5)
    assert sorted(i for fold in folds for i in fold) == list(range(390))
    groups = [{rows[i].group for i in fold} - {""} for fold in folds]
    assert sum(map(len, groups)) == 60


def test_one_of_each_group_is_kept_whatever_the_order() -> None:
    rows = [DataRow(f"on {i % 4}, {i}", "legal", group=str(i % 4)) for i in range(12)]
    rows += [DataRow("alone", "legal"), DataRow("1", "legal")]
    ballots = [Ballot(row, ()) for row in rows]
    kept = {ballot.row for ballot in one_of_each(ballots)}
    assert sorted(row.group for row in kept) == ["", "", "0", "1", "2", "3"]
    assert kept == {ballot.row for ballot in one_of_each(ballots[::-1])}


def test_corrections_with_texts_are_labelled_requests(tmp_path: Path) -> None:
    text = 'say "hi"\n\u2028 there'
    CorrectionStore(tmp_path).append(Correction(1e9, "1", "legal", "medical", "classified", 0.5, text=text))
    (row,) = read_rows(tmp_path / file_name(""), {"legal"})
    assert (row.text, row.label) == (text, "legal")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
ROWS = st.lists(
    st.builds(DataRow, TEXTS, st.sampled_from(["legal", "medical", ""]), TEXTS, TEXTS), max_size=5
)


@given(fit=ROWS, known=ROWS, strange=ROWS)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    fit: list[DataRow],
    known: list[DataRow],
    strange: list[DataRow],
) -> None:
    path = tmp_path_factory.mktemp("kept") / "calibration.json"
    kept = StoredRows.of(fit, known, strange)
    data = kept.written()
    path_of(path).write_bytes(data)
    assert read_stored(path, digest(data)) == kept


def test_no_more_are_kept_than_a_file_holds() -> None:
    rows = [DataRow(f"request {n}", "legal") for n in range(4000)]
    kept = StoredRows.of(rows, rows, rows)
    assert (len(kept.fit), len(kept.known), len(kept.strange)) == (MOST_FIT, MOST_PROOF, MOST_PROOF)
    assert StoredRows.of(rows, rows, rows) == kept


def test_a_calibration_without_rows_has_none(tmp_path: Path) -> None:
    assert read_stored(tmp_path / "calibration.json", "") is None
    assert read_stored(tmp_path / "calibration.json", digest(b"")) is None


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"part": "x"}', b'{"part": "fit"}', b"1", b"\xff"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path_of(path).write_bytes(content)
    with pytest.raises(CalibrationError, match="requests of another calibration"):
        read_stored(path, digest(b""))
    with pytest.raises(CalibrationError, match=r"calibration.rows.jsonl is damaged"):
        read_stored(path, digest(content))
