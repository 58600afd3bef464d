from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from router.errors import ConfigError
from router.extensions.training.data import load_splits, read_rows
from router.extensions.training.recipe import Data
from tests.extensions.training.tiny import write_data


@pytest.fixture
def data(tmp_path: Path) -> Data:
    write_data(tmp_path)
    return Data(**{name: tmp_path / f"{name}.jsonl" for name in ("train", "valid", "test")})


def test_splits(data: Data) -> None:
    splits = load_splits(data)
    assert [len(splits.train), len(splits.valid), len(splits.test)] == [24, 9, 9]
    assert splits.train[0].response == "red"


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_row_of_train_is_refused_elsewhere_and_named(data: Data, split: str) -> None:
    path: Path = getattr(data, split)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "Colour  of THING 5?", "response": "green"}) + "\n")
    with pytest.raises(ConfigError) as caught:
        load_splits(data)
    assert f"{split}.jsonl:10 also stands in train.jsonl:6" in caught.value.message
    assert "Colour  of THING 5?" in caught.value.message


def test_the_same_prompt_twice_in_train_is_fine(data: Data) -> None:
    data.train.write_text(data.train.read_text() * 2)
    assert len(load_splits(data).train) == 48


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_empty_split(data: Data, split: str) -> None:
    getattr(data, split).write_text("\n")
    with pytest.raises(ConfigError, match=rf"data\.{split}: .* holds no row"):
        load_splits(data)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "rows.jsonl:2 is not JSON"),
        ("[1]", "rows.jsonl:2 has no text in 'prompt'"),
        ('{"prompt": "a"}', "rows.jsonl:2 has no text in 'response'"),
        ('{"prompt": "a", "response": " "}', "rows.jsonl:2 has no text in 'response'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "response": "r"}\n' + line)
    with pytest.raises(ConfigError) as caught:
        list(read_rows(path))
    assert said in caught.value.message


def test_gzip_and_its_damage(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    packed = gzip.compress('{"prompt": "é\u2028", "response": "r", "x": "é"}\n'.encode())
    path.write_bytes(packed)
    assert [(row.prompt, row.bare) for row in read_rows(path)] == [("é\u2028", "é")]
    for damaged in (packed[:-9], b"not gzip", gzip.compress(b"\xff\xfe")):
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"cannot be read|is not UTF-8"):
            list(read_rows(path))


@pytest.mark.parametrize("schema", ['["t"]', '{"t": "a"}', '{"t": [1]}', "7"])
def test_schema_is_tables_with_columns(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "response": "r", "schema": {"t": ["a", "b"]}}')
    assert next(read_rows(path)).schema == (("t", ("a", "b")),)
    path.write_text(f'{{"prompt": "p", "response": "r", "schema": {schema}}}')
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: 'schema' must be an object of tables"):
        list(read_rows(path))
