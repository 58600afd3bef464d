"""Which files are taken, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from email.message import Message
from urllib.error import HTTPError

import pytest

from router.errors import DataLoss, FailedPrecondition, Unavailable
from router.sources.source import Listing, Passing, RemoteFile, StartOver
from router.sources.transfer import ATTEMPTS, MOST_ATTEMPTS, LeftOut, Transfer, choose, left_out, with_retries

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


# -- transfer


@dataclass
class Scripted:
    """A source whose reads are given: bytes, or what is raised."""

    script: list[list[bytes | Exception]]
    starts: list[int] = field(default_factory=list)

    def read(self, file, start):
        self.starts.append(start)
        for part in self.script.pop(0):
            if isinstance(part, Exception):
                raise part
            yield part


@pytest.fixture
def transfer(tmp_path):
    """A transfer of what is scripted, its source, and what was waited for."""

    def make(*script):
        waited: list[tuple[str, float]] = []
        source = Scripted(list(map(list, script)))
        folder = tmp_path / "adapters" / ".add-x" / "files"
        folder.mkdir(parents=True, exist_ok=True)
        made = Transfer(source, folder, lambda *_: None, lambda why, s: waited.append((why, s)))
        return made, source, waited

    return make


def fetched(transfer, size):
    transfer.fetch(RemoteFile("a", size))
    return (transfer.folder / "a").read_bytes()


def test_an_empty_file_is_one(transfer):
    made, _, _ = transfer([])
    assert fetched(made, 0) == b""


def test_what_came_counts_and_the_next_failure_is_a_first_one(transfer):
    down = Passing("down")
    made, source, waited = transfer([b"ab", down], [down], [b"c", down], [down], [down], [b"de"])
    assert fetched(made, 5) == b"abcde"
    assert source.starts == [0, 2, 2, 3, 3, 3]
    assert [seconds for _, seconds in waited] == [1, 2, 1, 2, 4]


def test_an_oserror_of_a_source_is_tried_again(transfer):
    made, source, waited = transfer([b"ab", ConnectionResetError("reset")], [b"", b"c"])
    assert fetched(made, 3) == b"abc"
    assert (source.starts, waited) == ([0, 2], [("reset", 1)])


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (FileNotFoundError("no folder"), True),
        (PermissionError("not yours"), True),
        (HTTPError("http://host/a", 404, "Not Found", Message(), None), True),
        (HTTPError("http://host/a", 429, "Too Many Requests", Message(), None), False),
        (HTTPError("http://host/a", 503, "Unavailable", Message(), None), False),
    ],
)
def test_an_oserror_that_stays_is_final(error, final):
    waited = []

    def ask():
        if not waited:
            raise error
        return "an answer"

    if final:
        with pytest.raises(FailedPrecondition, match=str(error)):
            with_retries(ask, lambda why, _: waited.append(why))
    else:
        assert with_retries(ask, lambda why, _: waited.append(why)) == "an answer"
        assert waited == [f"http://host/a: {error}"]


def test_a_source_that_gives_nothing_is_given_up(transfer):
    made, source, _ = transfer(*[[]] * 50)
    with pytest.raises(Unavailable, match=r"a: 3 bytes were announced, and 0 came \(6 attempts\)"):
        fetched(made, 3)
    assert len(source.starts) == ATTEMPTS


def test_a_source_that_drips_is_given_up(transfer):
    made, source, _ = transfer(*[[b"x", Passing("down")]] * 1000)
    with pytest.raises(Unavailable, match="200 attempts"):
        fetched(made, 1000)
    assert len(source.starts) == MOST_ATTEMPTS


def test_a_source_that_cannot_go_on_begins_again(transfer):
    made, source, _ = transfer([b"ab", Passing("down")], [StartOver()], [b"abc"])
    assert fetched(made, 3) == b"abc"
    assert source.starts == [0, 2, 0]


def test_a_part_that_is_longer_than_the_file_is_none(transfer):
    made, source, _ = transfer([b"abc"])
    (made.folder / "a.part").write_bytes(b"longer")
    assert fetched(made, 3) == b"abc"
    assert source.starts == [0]


def test_one_byte_more_is_a_lie(transfer):
    made, _, _ = transfer([b"ab", b"cd"])
    with pytest.raises(DataLoss, match="3 bytes were announced, and more come"):
        fetched(made, 3)


def test_asking_is_patient():
    answers = iter([Passing("busy", 7.0), Passing("busy"), "there"])
    waited: list[float] = []

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries(ask, lambda _, seconds: waited.append(seconds)) == "there"
    assert waited == [7, 2]
