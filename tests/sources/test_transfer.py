"""Which files are taken, and their bytes."""

from __future__ import annotations

import hashlib
from email.message import Message
from urllib.error import HTTPError

import pytest

from router.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from router.sources.source import FolderSource, Listing, RemoteFile
from router.sources.transfer import LeftOut, choose, fetch, left_out

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def listing(*names, folders=()):
    return Listing(tuple(RemoteFile(name, 10) for name in (CONFIG, WEIGHTS, *names)), folders)


def test_small_files_come_first_whatever_the_order_of_the_list():
    chosen = choose(listing("README.md", "adapter.toml", "adapter.sig"), report=False, most=100)
    names = [file.name for file in chosen.taken]
    assert names == ["adapter.toml", CONFIG, "adapter.sig", "README.md", WEIGHTS]
    assert chosen.bytes == 50


def test_names_are_compared_as_they_are():
    odd = ("Adapter.toml", "adapter.toml ", "ADAPTER_MODEL.safetensors", "adapter_model.safetensors.bak")
    assert {left.name for left in choose(listing(*odd), report=False, most=100).left} == set(odd)


def test_texts_that_are_too_large_stay_there():
    whole = Listing((*listing().files, RemoteFile("README.md", 2 << 20)))
    assert [left.name for left in choose(whole, report=False, most=100).left] == ["README.md"]


def test_what_was_left_is_told_by_reason():
    left = choose(
        listing("a.png", "x.pt", "b.png", "c/x", "c/y", folders=("d",)), report=False, most=100
    ).left
    assert left_out(left) == (
        "'x.pt' (pickle, which runs code when it is read); 'd/' (a folder); 'c/' (a folder with 2 files); "
        "'a.png', 'b.png' (no file of an adapter)"
    )
    assert left_out([LeftOut("\x1b[2J", "code")]) == "'\\x1b[2J' (code)"


# -- their bytes


class Scripted(FolderSource):
    """A source whose blocks are given, and what is raised after them."""

    def __init__(self, blocks, error=None):
        super().__init__("scripted:x")
        self.blocks, self.error = blocks, error

    def read(self, file):
        yield from self.blocks
        if self.error is not None:
            raise self.error


def fetched(folder, source, size, sha256=""):
    told = []
    digest = fetch(source, RemoteFile("a", size, sha256), folder, lambda *what: told.append(what))
    assert digest == hashlib.sha256((folder / "a").read_bytes()).hexdigest()
    return (folder / "a").read_bytes(), told


def test_blocks_are_written_and_told(tmp_path):
    assert fetched(tmp_path, Scripted([b"ab", b"c"]), 3) == (
        b"abc",
        [("a", 0, 3), ("a", 2, 3), ("a", 3, 3)],
    )
    assert fetched(tmp_path, Scripted([]), 0)[0] == b""


@pytest.mark.parametrize(
    ("blocks", "sha256", "message"),
    [
        ([b"ab", b"cd"], "", "3 bytes were announced, and more come"),
        ([b"ab"], "", "3 bytes were announced, and 2 came"),
        ([b"abc"], "00" * 32, "the bytes that came are not those that were announced"),
    ],
)
def test_other_bytes_than_announced(tmp_path, blocks, sha256, message):
    with pytest.raises(DataLoss, match=message):
        fetched(tmp_path, Scripted(blocks), 3, sha256)


def test_no_byte_beyond_what_was_announced_is_written(tmp_path):
    with pytest.raises(DataLoss):
        fetched(tmp_path, Scripted([b"abc", bytes(1 << 20)]), 3)
    assert (tmp_path / "a").read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (FileNotFoundError("no folder"), FailedPrecondition),
        (PermissionError("not yours"), FailedPrecondition),
        (HTTPError("http://host/a", 404, "Not Found", Message(), None), FailedPrecondition),
        (HTTPError("http://host/a", 429, "Too Many Requests", Message(), None), Unavailable),
        (HTTPError("http://host/a", 503, "Unavailable", Message(), None), Unavailable),
        (ConnectionResetError("reset"), Unavailable),
        (OSError(28, "No space left on device"), ResourceExhausted),
    ],
)
def test_faults_of_a_source_are_explained(tmp_path, error, ours):
    with pytest.raises(ours):
        fetched(tmp_path, Scripted([b"a"], error), 3)
