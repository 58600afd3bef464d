from types import SimpleNamespace

import pytest

from router.errors import AlreadyExists, ConfigError
from router.registry.format.manifest import Manifest
from router.sources.adding import AdaptersFolder, NameOverride, called
from router.types import AdapterRef
from tests.cli.tiny import write_adapter

SOURCE = SimpleNamespace(name="Some LoRA", version="v1")


@pytest.mark.parametrize(
    ("says", "wanted", "ref"),
    [
        (None, NameOverride(), "some-lora@v1"),
        (None, NameOverride("mine", "2"), "mine@2"),
        (Manifest("own", "3"), NameOverride(), "own@3"),
        (Manifest("own", "3"), NameOverride("own", "3"), "own@3"),
        (Manifest("folder", "3"), NameOverride("mine"), "mine@3"),  # its name is the folder's: it says none
        (Manifest("own"), NameOverride(version="2"), "own@2"),
    ],
)
def test_the_manifest_says_it_then_the_user_then_the_source(says, wanted, ref):
    assert str(called(says, "folder", SOURCE, wanted)) == ref


@pytest.mark.parametrize("wanted", [NameOverride("mine"), NameOverride(version="2")])
def test_a_manifest_is_not_contradicted(wanted):
    with pytest.raises(ConfigError, match="changing that changes its digest"):
        called(Manifest("own", "3"), "folder", SOURCE, wanted)


def test_a_source_without_a_name_wants_one():
    with pytest.raises(ConfigError, match="say --name"):
        called(None, "folder", SimpleNamespace(name="...", version=""), NameOverride())


def test_versions_stand_below_their_name(adapters):
    write_adapter(adapters / "a" / "1.0")
    adapters_folder = AdaptersFolder(adapters)
    assert adapters_folder.spot(AdapterRef("a", "1.0"), None).present == adapters / "a" / "1.0"
    spot = adapters_folder.spot(AdapterRef("a", "1.1"), None)
    assert (spot.folder, spot.present) == (adapters / "a" / "1.1", None)


def test_beside_a_version_that_is_a_folder_itself(adapters):
    write_adapter(adapters / "a")
    adapters_folder, ref = AdaptersFolder(adapters), AdapterRef("a", "1.1")
    assert adapters_folder.spot(ref, Manifest("a", "1.1")).folder == adapters / "a-1.1"
    with pytest.raises(ConfigError, match="is a version itself"):
        adapters_folder.spot(ref, None)
    write_adapter(adapters / "a-1.1", manifest='[adapter]\nname = "other"\n')
    with pytest.raises(AlreadyExists, match=r"a-1.1 is there already, and is not a@1.1"):
        AdaptersFolder(adapters).spot(ref, Manifest("a", "1.1"))


def test_a_version_that_no_folder_can_say(adapters):
    with pytest.raises(ConfigError, match="is written like"):
        AdaptersFolder(adapters).spot(AdapterRef("a", "beta"), None)
    assert (
        AdaptersFolder(adapters).spot(AdapterRef("a", "beta"), Manifest("a", "beta")).folder
        == adapters / "a" / "beta"
    )
