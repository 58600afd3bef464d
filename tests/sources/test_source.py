import hashlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import AdapterRejected
from router.sources.source import Check, FolderSource, Listing, RemoteFile, wrong_name


def test_checks_are_sha256_and_gits_own(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes\n")
    git = subprocess.run(
        ["git", "hash-object", path], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Check("git", git).fits(path)
    assert Check("sha256", hashlib.sha256(b"some bytes\n").hexdigest()).fits(path)
    path.write_bytes(b"some bytez\n")
    assert not Check("git", git).fits(path)


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
