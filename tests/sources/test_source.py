"""Sources of adapters: what a user writes, and a folder on this machine."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import AdapterRejected, ConfigError, DataLoss
from router.extensions.hub.source import Hub
from router.sources.adding import AddOutcome
from router.sources.source import FolderSource, Listing, LocalFolder, RemoteFile, wrong_name
from tests.cli.tiny import write_adapter
from tests.sources.sources import source_of


@given(st.text(max_size=20))
def test_a_right_name_stays_in_its_folder(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp()
    if not wrong_name(name):
        assert (root / name).resolve().is_relative_to(root.resolve())
        assert (root / name) != root


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(AdapterRejected, match="twice"):
        Listing((RemoteFile("a", 1), RemoteFile("a", 2)))


@pytest.mark.parametrize(
    ("text", "inside", "address", "name", "version"),
    [
        ("web:http://host/contracts/1.2.0/", "", "http://host/contracts/1.2.0/", "contracts", "1.2.0"),
        ("web:http://host/contracts", "1.2.0", "http://host/contracts/1.2.0/", "contracts", "1.2.0"),
        ("s3://bucket/contracts/", "", "//bucket/contracts/", "contracts", ""),
        ("shelf:contracts", "", "contracts/", "contracts", ""),
        ("shelf:1.2.0", "", "1.2.0/", "1.2.0", "1.2.0"),
        ("/srv/a:b", "", "/srv/a:b/", "a:b", ""),
    ],
)
def test_a_folder_source_has_its_name_from_its_address(text, inside, address, name, version):
    source = FolderSource(text, inside)
    assert (source.address, source.name, source.version) == (address, name, version)
    with pytest.raises(NotImplementedError, match="FolderSource has no method listing"):
        source.unchanged(Listing(()))


# -- local


@pytest.fixture
def folder(tmp_path):
    return write_adapter(tmp_path / "My LoRA")


def test_a_folder_is_copied_and_left_as_it_is(folder, added, adapters):
    (folder / "checkpoint-1").mkdir()
    before = sorted(os.listdir(folder))
    done = added(folder)
    assert (str(done.ref), done.folder) == ("my-lora@0", adapters / "my-lora" / "0")
    assert [left.name for left in done.left] == ["checkpoint-1/"]
    assert sorted(os.listdir(folder)) == before
    assert added(f"file://{folder}").outcome is AddOutcome.PRESENT


def test_a_folder_that_is_called_like_a_version(tmp_path, added):
    write_adapter(tmp_path / "contracts" / "1.0")
    assert str(added(tmp_path / "contracts" / "1.0").ref) == "contracts@1.0"


def test_links_are_not_followed(folder, tmp_path, added, adapters):
    (folder / "README.md").symlink_to("/etc/passwd")
    assert [(left.name, left.why) for left in added(folder).left] == [
        ("README.md", "a link, and none is followed")
    ]
    (folder / "adapter.toml").symlink_to("/etc/passwd")
    with pytest.raises(AdapterRejected, match=r"'adapter.toml': a link"):
        added(folder)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(AdapterRejected, match="is a symbolic link"):
        added(tmp_path / "link")


def test_a_file_that_grows_is_refused(folder):
    source = LocalFolder(folder)
    (file,) = (f for f in source.listing().files if f.name == "adapter_config.json")
    (folder / file.name).write_text("{}")
    with pytest.raises(DataLoss, match="changed while it was read"):
        list(source.read(file))


# -- specifier


@pytest.mark.parametrize("said", ["hub:org/name@v1", "hf://org/name@v1", "hf:org/name@v1"])
def test_a_hub_is_said_in_several_ways(hub, said):
    source = source_of(said)
    assert isinstance(source, Hub)
    assert source.reference == "hub:org/name@v1"


def test_a_folder_is_one_wherever_it_is(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for said in ("a b", "./a b/", "~/a b", f"file://{tmp_path}/a b"):
        source = source_of(said)
        assert isinstance(source, LocalFolder)
        assert source.reference == str(tmp_path / "a b")


@pytest.mark.parametrize(
    "said", ["https://host/folder/", "zip://a::memory://b", "nothing://x/y", "http://x/y"]
)
def test_what_lists_no_folders(said):
    with pytest.raises(ConfigError):
        source_of(said)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("no/such", "no/such is no folder here; hub:no/such is one on the hub"),
        ("./no/such", "is no folder here$"),
        ("https://huggingface.co/org/name/tree/main", "is a page: say hub:org/name"),
    ],
)
def test_what_is_no_folder_is_told(said, message):
    with pytest.raises(ConfigError, match=message):
        source_of(said)


@pytest.mark.parametrize("inside", ["../x", "/x", "a/../../b", "a//b", "a\x00b"])
def test_subfolders_stay_inside(tmp_path, inside):
    with pytest.raises(ConfigError, match="--subfolder"):
        source_of(str(tmp_path), inside)
