"""Corrections on the disk: durable, bounded, and whole whatever was cut off or is written into them."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.corrections.store import (
    MAX_TEXT,
    Correction,
    CorrectionStore,
    StoredCorrections,
    file_name,
    from_line,
    latest,
    to_line,
)
from router.registry.format.untrusted import EXAMPLE_CHARS

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
CORRECTIONS = st.builds(
    Correction,
    time=st.integers(0, 4_000_000_000).map(lambda ms: ms / 1000),
    response_id=TEXTS,
    label=TEXTS,
    chosen=st.none() | TEXTS,
    reason=TEXTS,
    confidence=st.integers(0, 10**6).map(lambda n: n / 10**6),
    text=TEXTS,
    tenant=st.sampled_from(["", "acme", "a-1"]),
)


def made(number: int, **fields: object) -> Correction:
    return replace(
        Correction(1e9 + number, f"{number:032x}", "legal", "medical", "classified", 0.5), **fields
    )


@given(CORRECTIONS)
def test_any_text_is_one_line_and_comes_back(one: Correction) -> None:
    line = to_line(one)
    assert line.count(b"\n") == 1
    assert from_line(line) == one


@given(st.binary(max_size=300))
def test_what_is_no_correction_is_none(data: bytes) -> None:
    found = from_line(data)
    assert found is None or isinstance(found, Correction)


@pytest.mark.parametrize(
    "said",
    [
        *({}, [], 1, None, {"label": 1}, {"label": "a", "text": 3}, {"label": "a", "chosen": ["b"]}),
        {"label": "a", "chosen": {}},
        *({"label": "a", "time": "soon"}, {"label": "a", "time": 3}, {"label": "a", "confidence": "x"}),
        {"label": "a", "confidence": float("nan")},
    ],
)
def test_json_that_is_no_correction(said: object) -> None:
    assert from_line(json.dumps(said).encode()) is None


def test_a_deep_or_huge_line_is_no_correction() -> None:
    assert from_line(b"[" * 100_000) is None
    assert from_line(b'{"label": "a", "confidence": 1' + b"0" * 5000 + b"}") is None


def test_a_text_may_be_as_long_as_an_example() -> None:
    assert MAX_TEXT == EXAMPLE_CHARS


def test_the_last_word_on_an_answer_counts() -> None:
    first, other, again = made(1), made(2), made(1, label="qa")
    assert latest([first, other, again]) == [other, again]
    assert latest([made(1, tenant="a"), made(1, tenant="b")]) == [made(1, tenant="a"), made(1, tenant="b")]
    assert len(latest([made(1, response_id=""), made(2, response_id="")])) == 2


@settings(max_examples=25)
@given(st.lists(CORRECTIONS, max_size=6), st.integers(0, 400))
def test_a_file_that_is_cut_anywhere_loses_the_line_it_was_cut_in_and_no_other(
    said: list[Correction], cut: int
) -> None:
    said = [replace(one, response_id=str(i), tenant="") for i, one in enumerate(said)]
    with tempfile.TemporaryDirectory() as folder:
        store = CorrectionStore(Path(folder))
        for one in said:
            store.append(one)
        path = Path(folder) / file_name("")
        data = path.read_bytes() if said else b""
        path.write_bytes(data[: max(0, len(data) - cut)])
        whole = data[: max(0, len(data) - cut)].count(b"\n")
        left = set(store.read().corrections)
        assert set(said[:whole]) <= left <= set(said[: whole + 1])  # a line may lack its end alone
        store.append(made(99))
        assert {*left, made(99)} == set(store.read().corrections)


def test_tenants_have_files_of_their_own(tmp_path: Path) -> None:
    store = CorrectionStore(tmp_path / "state" / "corrections")
    assert store.read() == StoredCorrections(())
    for one in (made(1), made(2, tenant="acme"), made(3, tenant="bravo")):
        store.append(one)
    assert [one.tenant for one in store.read().corrections] == ["", "acme", "bravo"]
    assert store.read("acme").corrections == (made(2, tenant="acme"),)
    assert store.read("nobody").corrections == ()
    folder = tmp_path / "state" / "corrections"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_what_was_cleared_is_not_on_the_disk(tmp_path: Path) -> None:
    store = CorrectionStore(tmp_path)
    for one in (made(1, tenant="acme", text="my name"), made(2, tenant="bravo", text="another's")):
        store.append(one)
    (tmp_path / ".acme.jsonl.new").write_bytes(to_line(made(1, text="my name")))  # of a crash
    assert store.clear(tenant="acme") == 1
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert (b"my name" in left, b"another's" in left) == (False, True)


@pytest.mark.parametrize("tenant", ["../x", "a/b", "A", "_", ".", "a" * 64, "a\n"])
def test_a_tenant_is_never_a_path(tmp_path: Path, tenant: str) -> None:
    with pytest.raises(ValueError, match="no tenant is called"):
        CorrectionStore(tmp_path).append(made(1, tenant=tenant))
    assert [p for p in tmp_path.rglob("*") if p.suffix == ".jsonl"] == []


def test_a_full_file_loses_the_older_half_of_its_tenant_alone(tmp_path: Path) -> None:
    most = 4000
    store = CorrectionStore(tmp_path, most)
    store.append(made(0, tenant="quiet"))
    for number in range(1, 200):
        store.append(made(number))
        assert (tmp_path / file_name("")).stat().st_size <= most
    left = store.read("").corrections
    assert left == tuple(made(n) for n in range(200 - len(left), 200))
    assert 9 <= len(left) <= 25
    assert store.read("quiet").corrections == (made(0, tenant="quiet"),)


def test_clearing(tmp_path: Path) -> None:
    store = CorrectionStore(tmp_path / "none")
    assert store.clear() == 0
    store = CorrectionStore(tmp_path)
    for number in range(4):
        store.append(made(number))
        store.append(made(number, tenant="acme"))
    with (tmp_path / file_name("acme")).open("ab") as file:
        file.write(b"{torn")
    assert store.read().damaged == 1
    assert store.clear(before=1e9 + 2, tenant="acme") == 3  # with the damaged line
    assert store.read("acme") == StoredCorrections((made(2, tenant="acme"), made(3, tenant="acme")))
    assert store.clear(tenant="acme") == 2
    assert not (tmp_path / file_name("acme")).exists()
    assert len(store.read().corrections) == 4
    assert (store.clear(), store.read()) == (4, StoredCorrections(()))


def test_a_disk_that_takes_a_part_keeps_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CorrectionStore(tmp_path)
    store.append(made(1))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            store.append(made(2))
    assert store.read() == StoredCorrections((made(1),))
    store.append(made(3))
    assert store.read() == StoredCorrections((made(1), made(3)))


def _write(folder: Path, first: int) -> None:
    store = CorrectionStore(folder, 20_000)
    for number in range(first, first + 50):
        store.append(made(number))


@pytest.mark.slow
def test_several_processes_write_and_clear_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, 100 * n)) for n in range(2)]
    for writer in writers:
        writer.start()
    store = CorrectionStore(tmp_path)
    while any(writer.is_alive() for writer in writers):
        store.clear(before=1e9)  # rewrites the files and takes away nothing
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert store.read().damaged == 0
    assert {one.time for one in store.read().corrections} == {1e9 + n for n in [*range(50), *range(100, 150)]}
