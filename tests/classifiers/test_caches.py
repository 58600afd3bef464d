"""Vectors that outlive the process, and files that are not what they were."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from router.classifiers import caches as module
from router.classifiers.caches import SPARE, FitCache, VectorCache, in_parts, pack, unpack

ROWS = np.array([[0.5, -0.25], [1.0, 0.0]], np.float32)


def test_what_was_kept_is_found_by_the_same_maker_only(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", "encoder/1")
    key = cache.key(["a", "b"])
    assert cache.find([key]) == {}
    cache.add({key: ROWS})
    again = VectorCache(tmp_path / "v.sqlite", "encoder/1")
    assert again.find([again.key(["a", "b"])])[key].tolist() == ROWS.tolist()
    assert again.key(["ab"]) != key != again.key(["b", "a"])
    assert VectorCache(tmp_path / "v.sqlite", "encoder/2").key(["a", "b"]) != key


def test_texts_that_are_no_unicode_have_a_key(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", "m")
    assert cache.key(["\ud800"]) != cache.key(["\ud801"])


def test_what_is_not_in_use_goes_where_it_is_much(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", "m")
    keys = [cache.key([str(i)]) for i in range(SPARE + 2)]
    cache.add(dict.fromkeys(keys, ROWS))
    cache.only(keys[:2])
    assert len(cache.find(keys)) == SPARE + 2
    cache.only(keys[:1])
    assert list(cache.find(keys)) == keys[:1]


def test_the_older_half_goes_where_there_are_too_many(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", "m")
    keys = [cache.key([str(i)]) for i in range(7)]
    for key in keys:
        cache.add({key: ROWS}, most=6)
    assert set(cache.find(keys)) == set(keys[-3:])


def test_a_damaged_file_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "v.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 50)
    cache = VectorCache(path, "m")
    with caplog.at_level(logging.WARNING):
        assert cache.find([cache.key(["a"])]) == {}
    assert "damaged and begun anew" in caplog.text
    cache.add({cache.key(["a"]): ROWS})
    assert cache.find([cache.key(["a"])])


def test_where_nothing_can_be_written_nothing_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = VectorCache(tmp_path / "absent" / "v.sqlite", "m")
    cache.add({cache.key(["a"]): ROWS})
    assert cache.find([cache.key(["a"])]) == {}
    assert "not kept" in caplog.text


@pytest.mark.parametrize(
    ("rows", "size"), [(b"", 2), (b"123", 2), (b"12345678", 0), (b"\x00\x7c\x00\x7c", 2)]
)
def test_rows_that_are_none(rows: bytes, size: int) -> None:
    assert unpack(rows, size) is None


def test_damaged_rows_are_made_again(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "v.sqlite", "m")
    key = cache.key(["a"])
    cache.add({key: ROWS})
    with sqlite3.connect(tmp_path / "v.sqlite") as database:
        database.execute("UPDATE vectors SET rows = ?", (b"xyz",))
    database.close()
    assert cache.find([key]) == {}


def test_four_digits_are_kept() -> None:
    rows = np.random.default_rng(0).uniform(-1, 1, (7, 30)).astype(np.float32)
    found = unpack(pack(rows), 30)
    assert found is not None
    assert np.abs(found - rows).max() < 5e-4


def test_in_parts() -> None:
    assert list(in_parts(range(5), 2)) == [(0, 1), (2, 3), (4,)]
    assert list(in_parts([], 2)) == []


KEY, OTHER = b"k" * 32, b"o" * 32
FIT = {"weights": ROWS, "bias": np.array([0.1, 1e-9])}


def test_a_fit_is_found_as_it_was_for_the_same_training_set_only(tmp_path: Path) -> None:
    FitCache(tmp_path / "fit").put(KEY, FIT)
    found = FitCache(tmp_path / "fit").find(KEY)
    assert found is not None
    assert {name: (rows.dtype, rows.tolist()) for name, rows in found.items()} == {
        name: (rows.dtype, rows.tolist()) for name, rows in FIT.items()
    }
    assert FitCache(tmp_path / "fit").find(OTHER) is None


def test_another_fit_takes_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FitCache(tmp_path / "fit")
    assert cache.find(KEY) is None
    cache.put(KEY, FIT)
    cache.put(OTHER, {"bias": FIT["bias"]})
    assert cache.find(KEY) is None
    assert cache.find(OTHER) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]
    assert caplog.records == []


@pytest.mark.parametrize("place", [0, 31, 32, 63, 64, 80, -1])
def test_a_changed_byte_is_never_used(tmp_path: Path, place: int) -> None:
    path = tmp_path / "fit"
    FitCache(path).put(KEY, FIT)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert FitCache(path).find(KEY) is None
    FitCache(path).put(KEY, FIT)
    assert FitCache(path).find(KEY) is not None


@pytest.mark.parametrize("rest", [0, 10, 64, 70, 90])
def test_half_a_file_is_made_anew_and_the_log_says_so_once(
    tmp_path: Path, rest: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "fit"
    FitCache(path).put(KEY, FIT)
    path.write_bytes(path.read_bytes()[:rest])
    assert FitCache(path).find(KEY) is None
    assert caplog.messages == [f"{path} is damaged and is made anew"]


def test_what_is_no_table_of_arrays_is_damage_even_with_a_right_digest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = b"cos\nsystem\n(S'echo pwned'\ntR."  # a pickle that would run a command
    (tmp_path / "fit").write_bytes(KEY + hashlib.sha256(body).digest() + body)
    assert FitCache(tmp_path / "fit").find(KEY) is None
    assert "damaged" in caplog.text


def test_what_is_too_large_is_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FitCache(tmp_path / "fit")
    cache.put(KEY, FIT)
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    assert cache.find(KEY) is None
    (tmp_path / "fit").unlink()
    cache.put(KEY, FIT)
    assert not (tmp_path / "fit").exists()
    assert "not kept" in caplog.text


def test_a_folder_that_takes_nothing_costs_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    FitCache(tmp_path / "absent" / "fit").put(KEY, FIT)
    assert "not kept" in caplog.text
    assert FitCache(tmp_path / "absent" / "fit").find(KEY) is None
