"""Files as people have them: every one is read as it is meant, or refused naming the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.errors import ConfigError
from router.training.new.rows import read_table


@pytest.fixture
def read(tmp_path: Path):
    def written(data: str | bytes, suffix: str = ".csv"):
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return read_table(path)

    return written


def values(table) -> list[list[str]]:
    return [list(record.values.values()) for record in table.records]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(read, delimiter: str) -> None:
    lines = [["text", "label"], ["one, two; three", "a"], ["four", "b"]]
    data = "".join(delimiter.join(f'"{field}"' for field in line) + "\r\n" for line in lines)
    table = read(data)
    assert table.columns == ("text", "label")
    assert values(table) == lines[1:]


def test_quoted_line_breaks_quotes_bom_and_blank_lines(read) -> None:
    table = read(b'\xef\xbb\xbftext,label\r\n"two\nlines, ""quoted""",a\r\n\r\n5" disk,b\r\n')
    assert table.columns == ("text", "label")
    assert values(table) == [['two\nlines, "quoted"', "a"], ['5" disk', "b"]]
    assert [record.place for record in table.records] == ["rows.csv:3", "rows.csv:5"]


def test_a_tsv_may_hold_commas(read) -> None:
    assert values(read("a\tb\n1,2\t3,4\n", ".tsv")) == [["1,2", "3,4"]]


@pytest.mark.parametrize(
    ("data", "suffix"),
    [
        ('{"q": "é", "n": 3}\n\n{"q": null, "n": [1]}\n', ".jsonl"),
        ('[{"q": "é", "n": 3}, {"q": null, "n": [1]}]', ".json"),
    ],
)
def test_json(read, data: str, suffix: str) -> None:
    table = read(data, suffix)
    assert table.columns == ("q", "n")
    assert values(table) == [["é", "3"], ["", "[1]"]]


@pytest.mark.parametrize(
    ("data", "suffix", "said"),
    [
        (b"a,b\nok,1\n\xe9t\xe9,2\n", ".csv", "rows.csv:3 is not UTF-8 (byte 0xe9): save the file as UTF-8"),
        ("a,b\nok,1\n".encode("utf-16-le"), ".csv", "holds zero bytes"),
        ("", ".csv", "rows.csv is empty"),
        ("a,b\n1,2\n1,2,3\n", ".csv", "rows.csv:3 has 3 fields, the first line names 2"),
        ('a,b\n1,"open\n', ".csv", "is a double quote left open?"),
        ("a,a\n1,2\n", ".csv", "names 'a' more than once"),
        ("{", ".jsonl", "rows.jsonl:1 is not JSON"),
        ("[1]", ".jsonl", "rows.jsonl:1 is no object"),
        ('{"a": 1}', ".json", "holds no list of objects"),
        ("[1]", ".json", "rows.json[0] is no object"),
        ('{"a": "\\ud800"}', ".jsonl", "'a' holds half a character"),
        ("[" * 100_000, ".json", "is not JSON"),
        ("a", ".xlsx", "cannot tell what it is by '.xlsx'"),
    ],
)
def test_refusals_name_the_place(read, data: str | bytes, suffix: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(data, suffix)
    assert said in caught.value.message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_table(tmp_path / "nowhere.csv")
