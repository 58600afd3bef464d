"""Values out of files: what is right comes through, what is wrong is named, and twice is once."""

from __future__ import annotations

import json
import sys
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.errors import ConfigError
from router.experiments.assignment import unit_hash
from router.experiments.model import Accepted, StoredOutcome
from router.experiments.store.store import ExperimentStore
from router.experiments.value_files import BadFile, CheckedFile, FileValue, check_values, read_values
from tests.experiments.store.helpers import experiment, exposed, row

AT = 1_782_907_200.0  # 2026-07-01T12:00:00Z
MOMENT = datetime.fromtimestamp(AT, UTC)
FORMS = ("csv", "jsonl", "parquet")


def written(folder: Path, form: str, **columns: list) -> Path:
    """A file of these columns."""
    path = folder / f"values.{form}"
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if form == "parquet":
        pq.write_table(pa.table(columns), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(columns), *(",".join(str(row[name]) for name in columns) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path, name: str = "x") -> list[FileValue]:
    return [value for batch in read_values(path, name) for value in batch]


def faults(path: Path) -> list[tuple[str, str]]:
    with pytest.raises(BadFile) as caught:
        read(path)
    return [(v.field.removeprefix(path.name), v.description) for v in caught.value.violations]


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_every_kind_of_file_say_the_same(tmp_path, form):
    units, metrics = ["user-1", "Ünal 名"], ["spent", "visits"]
    path = written(tmp_path, form, unit=units, metric=metrics, value=[1.5, 3.0], time=[AT, AT + 0.25])
    one, two = read(path)
    assert one[:6] == (1 if form != "csv" else 2, "spent", 1.5, "user-1", "", AT)
    assert two[1:6] == ("visits", 3.0, "Ünal 名", "", AT + 0.25)
    assert (
        one.key == "row-8c93a5b440ef4eb09f3706b57083b5e4"
    )  # the same in every version: what was sent must stay known
    hashed = written(
        tmp_path, form, unit_hash=[unit_hash(u) for u in units], metric=metrics, value=[1.5, 3.0]
    )
    assert [(v.unit, v.unit_hash) for v in read(hashed)] == [("", unit_hash(u)) for u in units]


def test_a_key_is_made_of_experiment_unit_metric_and_time(tmp_path):
    def key(name: str = "x", form: str = "jsonl", **other: object) -> str:
        cells = {"unit": "u", "metric": "m", "value": 1.0, "time": AT} | other
        kept = {k: [v] for k, v in cells.items() if v is not None}
        return read(written(tmp_path, form, **kept), name)[0].key

    first = key()
    same = [
        key("experiments/x"),
        key(value=2.0),
        key(time="2026-07-01T12:00:00Z"),
        key(time="2026-07-01T14:00:00.000+02:00", form="csv"),
        key(time=MOMENT, form="parquet"),
        key(unit=None, unit_hash=unit_hash("u")),
    ]
    other = [key("y"), key(unit="v"), key(metric="n"), key(time=AT + 1e-6), key(time=None)]
    assert set(same) == {first}
    assert len({first, *other}) == 6
    assert key(key="mine") == "mine"


def test_the_same_file_twice_counts_once(tmp_path):
    path = written(tmp_path, "csv", unit=["u1", "u2"], metric=["good"] * 2, value=[1, 0], time=[AT, AT])
    store = ExperimentStore(f"sqlite:///{tmp_path}/x.db")
    store.create(experiment(phases=(AT - 60,)))
    start = AT - 1_000_000.0 - 30  # as `exposed` counts from START
    store.expose([exposed(unit_hash(u), f"r-{u}", at=start) for u in ("u1", "u2")])
    for status in (Accepted.COUNTED, Accepted.DUPLICATE):
        found = [
            StoredOutcome(v.key, v.metric, v.value, v.time, experiment="x", unit=unit_hash(v.unit))
            for v in read(path)
        ]
        assert store.record(found) == (status, status)
    assert row(store) == (2, 1.0)
    store.close()


def test_a_file_that_repeats_itself_is_told(tmp_path):
    same = {"unit": ["u", "u", "u", "v"], "metric": ["m"] * 4, "value": [1, 2, 1, 1]}
    assert check_values(written(tmp_path, "csv", **same), "x") == CheckedFile(rows=4, repeated=2)
    timed = written(tmp_path, "csv", **same, time=[AT, AT + 1, AT + 2, AT])
    assert check_values(timed, "x") == CheckedFile(4, 0)


def test_batches_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr("router.experiments.value_files.BATCH", 3)
    path = written(tmp_path, "csv", unit=[f"u{i}" for i in range(7)], metric=["m"] * 7, value=range(7))
    batches = list(read_values(path, "x"))
    assert [[v.value for v in batch] for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_bad_rows_are_named_each_with_its_line_and_column(tmp_path):
    path = tmp_path / "v.csv"
    lines = [
        b"unit,metric,value,time,key",
        b'"two\nlines",m,1,,',
        b"u,m,abc,,",
        b"u,m,nan,,",
        b"",
        b"u,m,1e999,,",
        b"caf\xe9,m,1,,",
        b"null,,1_0,yesterday,",
        b"u,m",
        b"u,m,,2026-07-01T12:00:00,",
        b"u,m,1,1782907200000,k\xff",
        b"u" * 257 + b",m,True,20260701," + b"k" * 129,
    ]
    path.write_bytes(b"\n".join(lines))
    iso = "a time such as 2026-07-01T12:00:00Z"
    assert faults(path) == [
        (":4, column value", "is 'abc', not a number"),
        (":5, column value", "is 'nan', not a finite number"),
        (":7, column value", "is '1e999', not a finite number"),
        (":8, column unit", "is 'caf\\udce9', which is not UTF-8"),
        (":9, column unit", "is 'null', a word for nobody"),
        (":9, column metric", "is missing"),
        (":9, column value", "is '1_0', not a number"),
        (":9, column time", f"is 'yesterday', neither unix seconds nor {iso}"),
        (":10", "has 2 cells, the header 5"),
        (":11, column value", "is missing"),
        (
            ":11, column time",
            "is 2026-07-01T12:00:00, which has no offset: write 2026-07-01T12:00:00Z if it is UTC",
        ),
        (
            ":12, column time",
            "is '1782907200000', not unix seconds of the years 2000 to 9999 (milliseconds?)",
        ),
        (":12, column key", "is 'k\\udcff', which is not UTF-8"),
        (":13, column unit", "has 257 bytes, 256 are allowed"),
        (":13, column value", "is 'True', not a number"),
        (":13, column time", "is '20260701', not unix seconds of the years 2000 to 9999 (milliseconds?)"),
        (":13, column key", "has 129 bytes, 128 are allowed"),
    ]


def test_bad_lines_of_json(tmp_path):
    path = tmp_path / "v.jsonl"
    good = {"unit": 17, "metric": "m", "value": 1}
    wrong = [
        good | {"value": True},
        good | {"unit": 1.5},
        good | {"unit": None},
        good | {"tiem": 1},
        {"unit": "u"},
    ]
    lines = [
        *map(json.dumps, [good, *wrong]),
        "[1]",
        "{",
        '{"unit": "u", "metric": "m", "value": NaN}',
        "",
        "[" * 9999,
    ]
    lines += ['{"unit": "\udcff", "metric": "m\\u0000", "value": 1e400}']  # a byte that is no UTF-8
    lines += ['{"unit": "\\ud800", "metric": "m", "value": []}']
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    found = faults(path)
    others = "is none of unit, unit_hash, metric, value, time, key; leave it out; there are: "
    others += "'unit', 'metric', 'value', 'tiem'"
    assert found[:9] == [
        (":2, column value", "is True, not a number: write 1 or 0"),
        (":3, column unit", "is 1.5, not a text"),
        (":4, column unit", "is missing"),
        (
            ":5",
            f"column 'tiem' {others}",
        ),
        (":6", "has no column metric, value; there are: 'unit'"),
        (":7", "is no JSON object"),
        (":8", found[6][1]),
        (":9, column value", "is nan, not a finite number"),
        (":11", found[8][1]),
    ]
    assert found[6][1].startswith("is not JSON: ")
    assert found[8][1].startswith("is not JSON: ")
    assert found[9:] == [
        (":12, column unit", "is '\\udcff', which is not UTF-8"),
        (":12, column metric", "must not hold the character NUL"),
        (":12, column value", "is inf, not a finite number"),
        (":13, column unit", "is '\\ud800', which is not UTF-8"),
        (":13, column value", "is [], not a number"),
    ]


def test_bad_rows_of_parquet(tmp_path):
    path = tmp_path / "v.parquet"
    units = pa.array([b"u", b"caf\xe9", None, b"v"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 4, units.buffers())  # a writer that did not look
    times = pa.array([MOMENT.replace(tzinfo=None), None, None, None], pa.timestamp("ns"))
    pq.write_table(
        pa.table({"unit": text, "metric": ["m"] * 4, "value": [1.0, float("nan"), 2, None], "time": times}),
        path,
    )
    assert faults(path) == [
        (
            ", row 1, column time",
            "is 2026-07-01T12:00:00, which has no offset: write 2026-07-01T12:00:00Z if it is UTC",
        ),
        (", row 2, column unit", "is 'caf\\udce9', which is not UTF-8"),
        (", row 2, column value", "is nan, not a finite number"),
        (", row 3, column unit", "is missing"),
        (", row 4, column value", "is missing"),
    ]


def test_parquet_in_the_types_that_warehouses_write(tmp_path):
    path = tmp_path / "v.parquet"
    columns = {
        "unit": pa.array(["a", "b", "a"]).dictionary_encode(),
        "metric": pa.array(["m"] * 3, pa.large_string()),
        "value": pa.array([Decimal("1.25"), Decimal(2), Decimal(3)]),
        "time": pa.array([MOMENT, MOMENT, None], pa.timestamp("ns", "America/New_York")),
    }
    pq.write_table(pa.table(columns), path)
    assert [v[1:6] for v in read(path)] == [
        ("m", 1.25, "a", "", AT),
        ("m", 2.0, "b", "", AT),
        ("m", 3.0, "a", "", None),
    ]
    pq.write_table(pa.table({"unit": [17], "metric": ["m"], "value": pa.array([1.5], pa.float32())}), path)
    assert read(path)[0][2:4] == (1.5, "17")
    pq.write_table(pa.table({"unit": [17], "metric": ["m"], "value": [1], "time": [date(2026, 7, 1)]}), path)
    assert faults(path)[0][1].startswith("is datetime.date(2026, 7, 1), neither unix seconds nor")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"user": ["u"], "metric": ["m"], "value": [1]},
            "has no column unit or unit_hash; there are: 'user',",
        ),
        (
            {"unit": ["u"], "unit_hash": ["0" * 32], "metric": ["m"], "value": [1]},
            "has both unit and unit_hash",
        ),
        (
            {"unit": ["u"], "metric": ["m"], "value": [1], "arm": ["a"]},
            "column 'arm' is none of unit, unit_hash",
        ),
        ({"unit_hash": ["F" * 32], "metric": ["m"], "value": [1]}, "not the 32 hexadecimal digits of a hash"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_columns_that_are_not_as_they_should_be(tmp_path, form, columns, told):
    found = faults(written(tmp_path, form, **{name: cells * 3 for name, cells in columns.items()}))
    assert told in found[0][1]
    if form != "jsonl" and "hexadecimal" not in told:
        assert [where for where, _ in found] == [""]  # of the file
    else:
        assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("v.csv", b"", "v.csv: has no rows"),
        ("v.csv", b"unit,metric,value\n", "v.csv: has no rows"),
        ("v.csv", b"unit,metric,unit\nu,m,1\n", "v.csv:1: two columns have the same name"),
        ("v.csv", b'unit,metric,value\nu,m,1\n"u,m,1\n', "v.csv:3: is no CSV from here on: unexpected end"),
        (
            "v.csv",
            "unit,metric,value\nu,m,1\n".encode("utf-16"),
            "has no column metric, value, unit or unit_hash",
        ),
        ("v.csv", b"unit;metric;value\nu;m;1\n", "there are: 'unit;metric;value'"),
        ("v.jsonl", b"\n\n", "v.jsonl: has no rows"),
        ("v.parquet", b"", "v.parquet, row 1: is no Parquet from here on"),
        ("v.parquet", b"unit,metric,value\nu,m,1\n", "v.parquet, row 1: is no Parquet from here on"),
    ],
)
def test_files_that_are_none(tmp_path, name, data, told):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(BadFile) as caught:
        read(path)
    assert told in caught.value.message


def test_an_empty_parquet(tmp_path):
    with pytest.raises(BadFile, match="has no rows"):
        read(written(tmp_path, "parquet", unit=pa.array([], pa.string()), metric=[], value=[]))


def test_parquet_that_breaks_off_within(tmp_path):
    path = written(
        tmp_path, "parquet", unit=[f"u{i}" for i in range(999)], metric=["m"] * 999, value=[1.0] * 999
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + b"\xaa" * 400 + whole[600:])
    assert "is no Parquet from here on: " in faults(path)[0][1]


def test_a_mark_of_utf8_is_no_part_of_a_name(tmp_path):
    (tmp_path / "v.csv").write_bytes(b"\xef\xbb\xbfunit,metric,value\r\nu,m,1\r\n")
    (tmp_path / "v.jsonl").write_bytes(b'\xef\xbb\xbf{"unit": "u", "metric": "m", "value": 1}\r\n')
    for name in ("v.csv", "v.jsonl"):
        assert read(tmp_path / name)[0][1:4] == ("m", 1.0, "u")


def test_metrics_that_cannot_be_recorded(tmp_path):
    path = written(tmp_path, "csv", unit=["u"], metric=["error"], value=[1])
    with pytest.raises(BadFile, match=r"values\.csv:2, column metric: is recorded by the server"):
        check_values(path, "x", lambda name: "is recorded by the server" if name == "error" else "")


def test_of_many_bad_rows_a_hundred_are_named_and_all_are_counted(tmp_path):
    path = written(tmp_path, "csv", unit=["u"] * 5000, metric=["m"] * 5000, value=["x"] * 5000)
    with pytest.raises(BadFile) as caught:
        read(path)
    assert (len(caught.value.violations), caught.value.total) == (100, 5000)
    assert str(caught.value).endswith("; and 4,997 more")


def test_nothing_comes_from_the_first_bad_row_on(tmp_path, monkeypatch):
    monkeypatch.setattr("router.experiments.value_files.BATCH", 2)
    path = written(tmp_path, "csv", unit=["u"] * 10, metric=["m"] * 10, value=[1, 2, 3, "x", *range(6)])
    seen = []

    def keep() -> None:
        for batch in read_values(path, "x"):
            seen.extend(value.value for value in batch)

    with pytest.raises(BadFile):
        keep()
    assert seen == [1, 2]


def test_files_of_another_kind(tmp_path, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"v\.xlsx: what is it\? Files that can be read end with \.csv, \.jsonl"
    ):
        read(tmp_path / "v.xlsx")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "v.csv")
    path = written(tmp_path, "parquet", unit=["u"], metric=["m"], value=[1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[export\]' in the checkout"):
        read(path)
