import os

import pytest

from router.errors import AdapterRejected, DataLoss
from router.sources.adding import AddOutcome
from router.sources.source import LocalFolder
from tests.cli.tiny import write_adapter


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
        list(source.read(file, 0))
