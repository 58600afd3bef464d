"""Object stores by fsspec: its store in memory stands for all."""

import sys

import fsspec
import pytest

from router.errors import (
    AdapterRejected,
    ConfigError,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from router.sources.adding import AddOutcome
from tests.sources.conftest import in_view, staged
from tests.sources.sources import source_of

URL = "memory://bucket/adapters/contracts/1.2.0/"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(adapter_files):
    """A store in memory, which is one for the whole process, with the adapter."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    for name, data in adapter_files.items():
        files.pipe_file(f"/bucket/adapters/contracts/1.2.0/{name}", data)
    return files


def test_name_and_version_are_the_last_parts(store, added, adapters, adapter_files):
    done = added(URL)
    assert (str(done.ref), done.folder) == ("contracts@1.2.0", adapters / "contracts" / "1.2.0")
    assert (done.folder / WEIGHTS).read_bytes() == adapter_files[WEIGHTS]
    assert done.origin.source == URL
    assert added(URL.rstrip("/")).outcome is AddOutcome.PRESENT
    assert str(added("memory://bucket/adapters/contracts", "1.2.0", name="b").ref) == "b@1.2.0"


def test_what_is_not_there(store, added):
    with pytest.raises(NotFound, match="memory://bucket/none/' not found: nothing is there"):
        added("memory://bucket/none/")


def test_files_that_change_are_of_no_moment(store, added, adapters, monkeypatch):
    real = type(store).cat_file

    def changing(self, path, **part):
        data = real(self, path, **part)
        if path.endswith(WEIGHTS):
            store.pipe_file(path, data[::-1])
        return data

    monkeypatch.setattr(type(store), "cat_file", changing)
    with pytest.raises(DataLoss, match="changed while it was read"):
        added(URL)
    assert in_view(adapters) == []
    assert staged(adapters) == []


@pytest.mark.parametrize("lie", [lambda data: data + b"x", lambda data: data[:-1]], ids=["more", "less"])
def test_other_sizes_than_announced(store, added, adapters, monkeypatch, lie):
    real = type(store).cat_file
    monkeypatch.setattr(type(store), "cat_file", lambda self, path, **part: lie(real(self, path, **part)))
    with pytest.raises(DataLoss, match="bytes were announced, and"):
        added(URL)
    assert in_view(adapters) == []


def test_a_file_comes_in_blocks(store, added, adapter_files, monkeypatch):
    monkeypatch.setattr("router.extensions.object_store.store.BLOCK", 300)
    assert (added(URL).folder / WEIGHTS).read_bytes() == adapter_files[WEIGHTS]


class NoCredentialsError(Exception):
    """As botocore calls it."""


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (NoCredentialsError("Unable"), PermissionDenied, "wants credentials: AWS_ACCESS_KEY_ID"),
        (PermissionError("Forbidden"), PermissionDenied, "may not be read with these credentials"),
        (TimeoutError("slow"), Unavailable, "cannot be read: TimeoutError: slow; run the same"),
    ],
)
def test_a_store_that_does_not_answer(store, added, monkeypatch, fault, error, message):
    def failing(*_, **__):
        raise fault

    monkeypatch.setattr(type(store), "ls", failing)
    with pytest.raises(error, match=message):
        added(URL)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"name": "/bucket/adapters/contracts/1.2.0/../evil", "size": 1, "type": "file"}, AdapterRejected),
        ({"name": "/elsewhere/adapter.toml", "size": 1, "type": "file"}, AdapterRejected),
        ({"name": "/bucket/adapters/contracts/1.2.0/a", "size": None, "type": "file"}, DataLoss),
        ({"name": "/bucket/adapters/contracts/1.2.0/a", "size": -5, "type": "file"}, DataLoss),
    ],
)
def test_a_listing_that_lies(store, added, adapters, monkeypatch, entry, error):
    monkeypatch.setattr(type(store), "ls", lambda *_, **__: [entry])
    with pytest.raises(error):
        added(URL)
    assert in_view(adapters) == []


def test_secrets_are_not_recorded():
    with pytest.raises(ConfigError, match="leave secrets out") as refused:
        source_of("s3://key:secret@bucket/x/")
    assert "secret@" not in str(refused.value)


def test_a_driver_that_cannot_be_opened_is_one_line(monkeypatch):
    def failing(_):
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr("fsspec.core.url_to_fs", failing)
    with pytest.raises(
        FailedPrecondition, match="sftp:// cannot be opened: ConnectionRefusedError: nobody there"
    ):
        source_of("sftp://me@host/x/")


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(
        ConfigError,
        match=r"^s3:// needs a driver that is not installed: pip install -e '\.\[s3\]' in the checkout.*$",
    ):
        source_of("s3://bucket/key/")
