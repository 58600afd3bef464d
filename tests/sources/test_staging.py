"""The folder aside, and the record of the source."""

from __future__ import annotations

import os
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import AlreadyExists
from router.registry.folders import Scanner
from router.sources.staging import FILE_NAME, KEPT_SECONDS, PREFIX, SourceRecord, license_in, quoted, staged


def seen(adapters):
    return [str(path.relative_to(adapters)) for path in Scanner([adapters]).scan().found]


def filled(place, text="new"):
    (place.files / "adapter_config.json").write_text(text)


def test_nothing_is_seen_before_all_of_it_is(adapters):
    with staged(adapters) as place:
        filled(place)
        assert seen(adapters) == []
        place.publish(adapters / "medical" / "1.0")
        assert seen(adapters) == ["medical/1.0"]
    assert os.listdir(adapters) == ["medical"]


@pytest.fixture
def old(adapters):
    target = adapters / "medical" / "1.0"
    target.mkdir(parents=True)
    (target / "adapter_config.json").write_text("old")
    return target


def test_a_version_is_replaced_and_back_if_that_fails(adapters, old, monkeypatch):
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "being-added":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    with staged(adapters) as place:
        filled(place)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", fail)
            with pytest.raises(PermissionError):
                place.publish(old, replace=True)
        assert (old / "adapter_config.json").read_text() == "old"
        place.publish(old, replace=True)
    assert (old / "adapter_config.json").read_text() == "new"
    assert os.listdir(adapters) == ["medical"]


def test_who_comes_second_is_told(adapters):
    target = adapters / "medical" / "1.0"
    with staged(adapters) as first, staged(adapters) as second:
        filled(first), filled(second, "second")
        first.publish(target)
        with pytest.raises(AlreadyExists, match=r"medical/1.0 is there already"):
            second.publish(target)
    assert (target / "adapter_config.json").read_text() == "new"


def test_two_versions_of_a_new_name_at_once(adapters):
    with staged(adapters) as first, staged(adapters) as second:
        filled(first), filled(second)
        first.publish(adapters / "medical" / "1.0")
        second.publish(adapters / "medical" / "1.1")
    assert seen(adapters) == ["medical/1.0", "medical/1.1"]


def test_what_a_killed_process_left_long_ago_goes(adapters):
    for name, age in (("old", KEPT_SECONDS + 60), ("young", 60)):
        (adapters / f"{PREFIX}{name}").mkdir(parents=True)
        os.utime(adapters / f"{PREFIX}{name}", (time.time() - age,) * 2)
    with staged(adapters):
        pass
    assert os.listdir(adapters) == [f"{PREFIX}young"]


# -- origin


def test_what_is_written_is_read(tmp_path):
    origin = SourceRecord(
        "hub:a/b@main", "ab" * 32, "cd" * 20, "sub/é", "mit", {"adapter_config.json": "ef" * 32}
    )
    origin.write(tmp_path)
    assert SourceRecord.read(tmp_path) == SourceRecord(
        "hub:a/b@main", "ab" * 32, "cd" * 20, "sub/é", files={"adapter_config.json": "ef" * 32}
    )


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_can_be_quoted(text):
    assert tomllib.loads(f"a = {quoted(text)}") == {"a": text}


@pytest.mark.parametrize("text", ["", "= 1", "source = 1", 'source = "x"', "\ufffd", "a = [" * 5000])
def test_a_record_that_is_none(tmp_path, text):
    assert SourceRecord.read(tmp_path) is None
    (tmp_path / FILE_NAME).write_text(text)
    assert SourceRecord.read(tmp_path) is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ntags: [x]\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\r\nlicense: 'mit'\r\n---\r\n", "mit"),
        ("license: mit\n", ""),
        ("---\ntags: x\n---\nlicense: mit\n", ""),
        ("---\nlicense: \x1b[31m\n---\n", ""),
        ("---\nlicense: [mit, gpl]\n---\n", ""),
    ],
)
def test_the_licence_of_a_card(tmp_path, card, licence):
    assert license_in(tmp_path) == ""
    (tmp_path / "README.md").write_bytes(card.encode())
    assert license_in(tmp_path) == licence
