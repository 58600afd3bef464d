import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.sources.staging import FILE_NAME, SourceRecord, license_in, quoted


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
