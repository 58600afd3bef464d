import pytest

from router.errors import ConfigError
from router.extensions.hub.source import Hub
from router.sources.source import LocalFolder
from tests.sources.sources import source_of


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
