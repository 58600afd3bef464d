"""Somebody's files: read as they are meant or refused naming the line; columns, cleaning, splitting."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.training.new.rows import (
    Columns,
    Pair,
    Record,
    choose_columns,
    clean_rows,
    read_table,
    require_enough,
    split_rows,
)


@pytest.mark.parametrize(
    ("names", "said", "chosen"),
    [
        (("id", "Question", "ANSWER"), {}, ("Question", "ANSWER")),
        (("mail", "team"), {}, ("mail", "team")),
        (("mail", "team", "customer"), {"group": "customer"}, ("mail", "team")),
        (("mail", "team"), {"response": "mail"}, ("team", "mail")),
        (("id", "mail", "team"), {"prompt": "mail", "response": "team"}, ("mail", "team")),
    ],
)
def test_columns(names, said, chosen) -> None:
    columns = choose_columns(names, **said)
    assert (columns.prompt, columns.response) == chosen


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({}, "say --prompt-column NAME and --response-column NAME; the columns are 'id', 'mail', 'team'"),
        ({"prompt": "mail"}, "say --prompt-column"),
        ({"prompt": "mial"}, "--prompt-column 'mial' is not in the data: the columns are 'id'"),
        ({"prompt": "mail", "response": "mail"}, "must be different columns"),
    ],
)
def test_columns_that_cannot_be_chosen_are_listed(said, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_columns(("id", "mail", "team"), **said)
    assert complaint in caught.value.message


def record(prompt: str, response: str, group: str = "") -> Record:
    return Record("", {"p": prompt, "r": response, "g": group})


def test_cleaning_counts_what_it_leaves_out() -> None:
    rows = [
        record(" How? ", "so", "A"),
        record("", "so"),
        record("Why?", " "),
        record("HOW?", "so"),
        record("how?", "otherwise"),
        record("When?", "now", " a"),
    ]
    cleaned = clean_rows(rows, Columns("p", "r", "g"))
    assert cleaned.pairs == (Pair("How?", "so", "a"), Pair("When?", "now", "a"))
    assert cleaned.left_out() == [
        "2 without prompt or answer",
        "1 repeated",
        "1 repeated with another answer",
    ]


def test_too_few_rows_say_how_many_are_needed() -> None:
    require_enough(50, 60, "x.csv")
    with pytest.raises(ConfigError, match=r"x\.csv has 49 usable rows of 60; 50 are needed at least"):
        require_enough(49, 60, "x.csv")


def pairs(count: int, groups: int = 0) -> list[Pair]:
    return [Pair(f"q{n}", f"a{n % 4}", f"g{n % groups}" if groups else f"q{n}") for n in range(count)]


@pytest.mark.slow
@given(count=st.integers(50, 5000), groups=st.integers(30, 300))
def test_splits_are_whole_and_groups_stay_together(count: int, groups: int) -> None:
    rows = pairs(count, groups)
    made = split_rows(rows)
    assert sum(map(len, made.values())) == count
    sides = [{row.group for row in side} for side in made.values()]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_shares() -> None:
    made = split_rows(pairs(1000))
    assert all(110 <= len(made[name]) <= 190 for name in ("valid", "test"))
    large = split_rows(pairs(20_000))
    assert all(240 <= len(large[name]) <= 360 for name in ("valid", "test"))


@pytest.mark.parametrize("more", [60, 3000, 20_000])
def test_a_training_row_never_becomes_a_test_row_when_data_grow(more: int) -> None:
    before = {pair.prompt for pair in split_rows(pairs(50))["train"]}
    after = split_rows(pairs(more))
    assert not before & {pair.prompt for name in ("valid", "test") for pair in after[name]}


def test_too_few_groups_are_told() -> None:
    with pytest.raises(ConfigError, match=r"the 1 groups of rows .* choose another --group-column"):
        split_rows(pairs(100, groups=1))


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
