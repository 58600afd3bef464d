"""Somebody's files: read as they are meant or refused naming the line; columns, cleaning, splitting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError
from router.extensions.training.rows import (
    LATER,
    PROMPT,
    RESPONSE,
    SYSTEM,
    Columns,
    PromptPair,
    choose_columns,
    clean_rows,
    read_pairs,
    read_table,
    require_enough,
    split_rows,
    unfolded,
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


def record(prompt: str, response: str, group: str = "") -> dict[str, str]:
    return {"p": prompt, "r": response, "g": group}


def test_cleaning_counts_what_it_leaves_out() -> None:
    rows = [
        record(" How? ", "so", "A"),
        record("", "so"),
        record("Why?", " "),
        record("HOW?", "so"),
        record("how?", "otherwise"),
        record("When?", "now", " a"),
    ]
    cleaned, left = clean_rows(rows, Columns("p", "r", "g"))
    assert cleaned == [PromptPair("How?", "so", "a"), PromptPair("When?", "now", "a")]
    assert left == {"without prompt or answer": 2, "repeated": 1, "repeated with another answer": 1}


def test_too_few_rows_say_how_many_are_needed() -> None:
    require_enough(50, 60, "x.csv")
    with pytest.raises(ConfigError, match=r"x\.csv has 49 usable rows of 60; 50 are needed at least"):
        require_enough(49, 60, "x.csv")


def pairs(count: int, groups: int = 0) -> list[PromptPair]:
    return [PromptPair(f"q{n}", f"a{n % 4}", f"g{n % groups}" if groups else f"q{n}") for n in range(count)]


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
    return [list(record.values()) for record in table]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(read, delimiter: str) -> None:
    lines = [["text", "label"], ["one, two; three", "a"], ["four", "b"]]
    data = "".join(delimiter.join(f'"{field}"' for field in line) + "\r\n" for line in lines)
    table = read(data)
    assert list(table[0]) == ["text", "label"]
    assert values(table) == lines[1:]


def test_quoted_line_breaks_quotes_bom_and_blank_lines(read) -> None:
    table = read(b'\xef\xbb\xbftext,label\r\n"two\nlines, ""quoted""",a\r\n\r\n5" disk,b\r\n')
    assert list(table[0]) == ["text", "label"]
    assert values(table) == [['two\nlines, "quoted"', "a"], ['5" disk', "b"]]


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
    assert list(table[0]) == ["q", "n"]
    assert values(table) == [["é", "3"], ["", "[1]"]]


@pytest.mark.parametrize(
    ("data", "suffix", "said"),
    [
        (b"a,b\nok,1\n\xe9t\xe9,2\n", ".csv", "rows.csv:3 is not UTF-8 (byte 0xe9): save the file as UTF-8"),
        ("a,b\nok,1\n".encode("utf-16-le"), ".csv", "holds zero bytes"),
        ("", ".csv", "rows.csv holds no row"),
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


@pytest.fixture
def pairs_of(tmp_path: Path):
    """The pairs of a file, its columns, and the warnings about it."""

    def read(text: str, suffix: str, prompt: str = ""):
        path = tmp_path / f"rows{suffix}"
        path.write_text(text)
        said: list[str] = []
        found, columns, _ = read_pairs(path, Columns(prompt, ""), said.append)
        return [(pair.prompt, pair.response) for pair in found], columns, "\n".join(said)

    return read


def chats(*talks: list[tuple[str, str]]) -> str:
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    return "\n".join(map(json.dumps, rows))


def test_chat_rows_become_questions_with_answers(pairs_of) -> None:
    text = chats(
        [("system", "Be short."), ("user", "Hello?"), ("assistant", "Hi.")],
        [("system", "Be short."), ("user", "Why?"), ("assistant", "So."), ("user", "?"), ("assistant", "!")],
    )
    found, columns, said = pairs_of(text, ".jsonl")
    assert found == [("Hello?", "Hi."), ("Why?", "So.")]
    assert columns.system == "Be short."
    assert "1 rows are chats of several requests" in said


def test_a_cell_of_a_csv_holds_a_chat_as_json(pairs_of) -> None:
    talk = [("user", "Hello, you?"), ("assistant", 'I said "Hi".')]
    cell = json.dumps(json.loads(chats(talk))["messages"]).replace('"', '""')
    found, columns, _ = pairs_of(f'id,messages\n7,"{cell}"\n', ".csv")
    assert (found, columns.prompt, columns.response) == ([(talk[0][1], talk[1][1])], "prompt", "response")
    with pytest.raises(ConfigError, match=r":2: 'messages' is not JSON"):
        pairs_of("id,messages\n7,\"[{'role': 'user', 'content': 'a'}]\"\n", ".csv")


def test_several_system_texts_stand_before_the_requests(pairs_of) -> None:
    text = chats([("system", "A"), ("user", "q"), ("assistant", "a")], [("user", "r"), ("assistant", "b")])
    found, columns, _ = pairs_of(text, ".jsonl")
    assert found == [("A\n\nq", "a"), ("r", "b")]
    assert columns.system == ""


@pytest.mark.parametrize(("context", "answer"), [("input", "output"), ("context", "response")])
def test_what_an_instruction_is_about_stands_below_it(pairs_of, context: str, answer: str) -> None:
    rows = [
        {"instruction": "Translate.", context: "one", answer: "eins"},
        {"instruction": "Translate.", context: "two", answer: "zwei"},
        {"instruction": "Say hi.", context: "", answer: "hi"},
    ]
    found, _, said = pairs_of(json.dumps(rows), ".json")
    assert found == [("Translate.\n\none", "eins"), ("Translate.\n\ntwo", "zwei"), ("Say hi.", "hi")]
    assert "left out" not in said


# -- chats


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in pairs]


def unfolded_columns(row: dict[str, object]) -> tuple[str, str, str, str]:
    found = unfolded(row, "x:1")
    return found[SYSTEM], found[PROMPT], found[RESPONSE], found[LATER]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": turns(("user", "q"), ("assistant", "a"))}, ("", "q", "a", "")),
        (
            {"messages": turns(("system", "s"), ("user", "q"), ("assistant", "a"))},
            ("s", "q", "a", ""),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            ("s", "q", "a", ""),
        ),
        (
            {"messages": turns(("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2"))},
            ("", "q", "a", "1"),
        ),
        ({"messages": turns(("assistant", "hello"), ("user", "q"), ("assistant", "a"))}, ("", "q", "a", "")),
        (
            {"messages": turns(("user", "q"), ("user", "more"), ("assistant", "a"))},
            ("", "q\n\nmore", "a", ""),
        ),
        ({"messages": turns(("user", "q"), ("tool", "a"))}, ("", "q", "", "")),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}, ("", "q", "", "")),
    ],
)
def test_the_first_request_and_its_answer(row: dict[str, object], expected: tuple[str, ...]) -> None:
    assert unfolded_columns(row) == expected


def test_other_columns_stay() -> None:
    found = unfolded({"messages": turns(("user", "q"), ("assistant", "a")), "id": 3}, "x:1")
    assert found["id"] == 3
    assert "messages" not in found


@pytest.mark.parametrize("value", ["text", [], ["a"], [{"x": 1}], None, 3])
def test_what_is_no_chat_is_a_column_like_others(value: object) -> None:
    assert unfolded({"messages": value}, "x:1") == {"messages": value}


def test_a_picture_is_refused_naming_the_place() -> None:
    row = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
    with pytest.raises(ConfigError, match=r"x:1: messages\[0\] holds other parts than text"):
        unfolded(row, "x:1")
