"""Labelled requests: what is read, refused and left out; where they go; what is measured of that."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.extensions.calibration.evaluation import confusion, macro_f1, measure
from router.extensions.calibration.rows import (
    BASE_ANSWERS,
    Choice,
    DataRow,
    RoutedRow,
    distinct,
    one_of_each,
    read_rows,
    unseen,
)
from router.routing.calibration import CalibrationError

NAMES = ("legal", "medical")


def written(folder: Path, text: str) -> Path:
    path = folder / "requests.jsonl"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def test_rows_in_order(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"text": "a", "label": "legal", "source": "s"}\n\n{"text": "b", "label": "", "more": 1}\n'
    )
    assert read_rows(path, NAMES) == [DataRow("a", "legal", "s"), DataRow("b", "")]
    assert read_rows(written(tmp_path, '{"text": "a", "group": "g"}'), NAMES, "") == [
        DataRow("a", "", group="g")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: write one request a line"),
        ("\n \n", "is empty"),
        ('{"text": "a", "label": "lega"}', r":1: no adapter is called 'lega'; there are legal, medical"),
        ('{"text": "a", "label": "legal"}\n{"text": "b"}', r':2: needs a "label"'),
        ('{"text": "a", "label": 3}', 'needs a "label"'),
        ('{"text": " ", "label": "legal"}', 'needs a "text" that is not empty'),
        ("[1]", 'needs a "text"'),
        ("[" * 100_000, r":1: not JSON"),
        ("{text}", r":1: not JSON"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_rows(written(tmp_path, text), NAMES)


def test_a_line_ends_where_json_lines_do(tmp_path: Path) -> None:
    file = written(tmp_path, '{"text": "one\u2028two\u0085", "label": "legal"}\r\n')
    assert [row.text for row in read_rows(file, NAMES)] == ["one\u2028two\u0085"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No such file"):
        read_rows(tmp_path / "none.jsonl", NAMES)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match="not UTF-8: byte 0"):
        read_rows(tmp_path / "bytes", NAMES)


def test_a_text_counts_once_and_has_one_label() -> None:
    assert distinct([DataRow("a  b", "legal"), DataRow("a b", "legal", "again")]) == [
        DataRow("a  b", "legal")
    ]
    with pytest.raises(CalibrationError, match="labelled both 'legal' and 'medical'"):
        distinct([DataRow("a b", "legal"), DataRow("a\nb", "medical")])


def test_what_classifiers_learned_from_is_left_out() -> None:
    rows = [DataRow("a b", "legal"), DataRow("c", "legal")]
    assert unseen(rows, {"a  b"}) == rows[1:]


def test_one_of_each_group_is_kept_whatever_the_order() -> None:
    rows = [DataRow(f"on {i % 4}, {i}", "legal", group=str(i % 4)) for i in range(12)]
    rows += [DataRow("alone", "legal"), DataRow("1", "legal")]
    kept = one_of_each(rows)
    assert sorted(row.group for row in kept) == ["", "", "0", "1", "2", "3"]
    assert set(kept) == set(one_of_each(rows[::-1]))


# -- where requests go


def routed(label: str, *choices: tuple[float, str]) -> RoutedRow:
    return RoutedRow(
        DataRow(f"{label} {choices}", label, "s"), tuple(Choice(c, name, "words") for c, name in choices)
    )


def test_a_choice_holds_down_to_the_next_confidence() -> None:
    one = routed("legal", (0.8, ""), (0.6, "legal"), (0.3, "medical"))
    goes = [one.at(threshold).adapter for threshold in (0.9, 0.8, 0.61, 0.6, 0.31, 0.3, 0.0)]
    assert goes == ["", "", "", "legal", "legal", "medical", "medical"]
    assert one.forced == one.choices[1]
    assert routed("legal", (0.8, "")).forced == BASE_ANSWERS


def test_what_is_measured_at_a_threshold() -> None:
    known = [
        routed("legal", (0.9, "legal")),
        routed("legal", (0.7, "medical")),
        routed("medical", (0.4, "medical")),
        routed("", (0.6, "legal")),
        routed(""),
    ]
    found = measure(known, [routed("", (0.8, "legal")), routed("")], 0.5, 0.05)
    assert (found["rows"], found["routed"], found["errors"], found["strange_routed"]) == (5, 3, 2, 1)
    assert (found["accuracy"], found["coverage"]) == (2 / 3, 2 / 3)
    assert found["macro_f1"] == 2 / 3
    assert found["decided_by"] == {"words": 3}
    assert found["labels"]["legal"] == {"rows": 2, "right": 1, "routed": 2, "errors": 1}
    assert found["sources"] == {"s": {"rows": 5, "right": 3, "routed": 3, "errors": 2}}
    assert found["strange_bound"] == pytest.approx(0.9747, abs=1e-4)
    assert measure(known, [], 0.5, 0.05)["strange_bound"] is None
    assert confusion(known, 0.5) == (
        ["", "legal", "medical"],
        [[1, 1, 0], [0, 1, 1], [1, 0, 0]],
    )


def test_f1_of_a_label_that_is_never_said_is_0() -> None:
    assert macro_f1([("a", "a"), ("b", "a")]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1([]) == 0.0
