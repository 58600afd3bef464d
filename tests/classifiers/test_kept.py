"""Vectors that outlive the process, and files that are not what they were."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from router.classifiers.kept import SPARE, KeptVectors, in_parts, pack, unpack

ROWS = np.array([[0.5, -0.25], [1.0, 0.0]], np.float32)


def test_what_was_kept_is_found_by_the_same_maker_only(tmp_path: Path) -> None:
    kept = KeptVectors(tmp_path / "v.sqlite", "encoder/1")
    key = kept.key(["a", "b"])
    assert kept.find([key]) == {}
    kept.add({key: ROWS})
    again = KeptVectors(tmp_path / "v.sqlite", "encoder/1")
    assert again.find([again.key(["a", "b"])])[key].tolist() == ROWS.tolist()
    assert again.key(["ab"]) != key != again.key(["b", "a"])
    assert KeptVectors(tmp_path / "v.sqlite", "encoder/2").key(["a", "b"]) != key


def test_texts_that_are_no_unicode_have_a_key(tmp_path: Path) -> None:
    kept = KeptVectors(tmp_path / "v.sqlite", "m")
    assert kept.key(["\ud800"]) != kept.key(["\ud801"])


def test_what_is_not_in_use_goes_where_it_is_much(tmp_path: Path) -> None:
    kept = KeptVectors(tmp_path / "v.sqlite", "m")
    keys = [kept.key([str(i)]) for i in range(SPARE + 2)]
    kept.add(dict.fromkeys(keys, ROWS))
    kept.only(keys[:2])
    assert len(kept.find(keys)) == SPARE + 2
    kept.only(keys[:1])
    assert list(kept.find(keys)) == keys[:1]


def test_the_older_half_goes_where_there_are_too_many(tmp_path: Path) -> None:
    kept = KeptVectors(tmp_path / "v.sqlite", "m")
    keys = [kept.key([str(i)]) for i in range(7)]
    for key in keys:
        kept.add({key: ROWS}, most=6)
    assert set(kept.find(keys)) == set(keys[-3:])


def test_a_damaged_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 50)
    kept = KeptVectors(path, "m")
    with caplog.at_level(logging.WARNING):
        assert kept.find([kept.key(["a"])]) == {}
    assert "damaged and begun anew" in caplog.text
    kept.add({kept.key(["a"]): ROWS})
    assert kept.find([kept.key(["a"])])


def test_where_nothing_can_be_written_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = KeptVectors(tmp_path / "absent" / "v.sqlite", "m")
    kept.add({kept.key(["a"]): ROWS})
    assert kept.find([kept.key(["a"])]) == {}
    assert "not kept" in caplog.text


@pytest.mark.parametrize(
    ("rows", "size"), [(b"", 2), (b"123", 2), (b"12345678", 0), (b"\x00\x7c\x00\x7c", 2)]
)
def test_rows_that_are_none(rows: bytes, size: int) -> None:
    assert unpack(rows, size) is None


def test_damaged_rows_are_made_again(tmp_path: Path) -> None:
    kept = KeptVectors(tmp_path / "v.sqlite", "m")
    key = kept.key(["a"])
    kept.add({key: ROWS})
    with sqlite3.connect(tmp_path / "v.sqlite") as database:
        database.execute("UPDATE vectors SET rows = ?", (b"xyz",))
    database.close()
    assert kept.find([key]) == {}


def test_four_digits_are_kept() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (7, 30)).astype(np.float32)
    found = unpack(pack(rows), 30)
    assert found is not None
    assert np.abs(found - rows).max() < 5e-4


def test_in_parts() -> None:
    assert list(in_parts(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert list(in_parts([], 2)) == []
