import json
from pathlib import Path

from router.cli import output
from router.cli.output import clean, jsonable, one_line, print_pairs, print_table
from router.types import AdapterRef, AdapterState, Decision, Reason


def test_a_table_in_a_pipe_is_plain_and_never_wrapped(capsys):
    print_table(["A", "B"], [("x", "y" * 500), ("long", "[bold]z[/bold]")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header == "A     B"
    assert first == "x     " + "y" * 500
    assert second == "long  [bold]z[/bold]"


def test_columns_are_aligned_by_the_cells_of_a_terminal(capsys):
    print_table(["A", "", "LONG"], [("weite Zeichen 你🙂", "", "é"), ("x\x1b[2J", "b\nc", ""), ("", "", "z")])
    assert capsys.readouterr().out.splitlines() == [
        "A                        LONG",
        "weite Zeichen 你🙂       é",
        "x[2J                b c",
        "                         z",
    ]


def test_pairs_are_aligned(capsys):
    print_pairs([("base", "one"), ("kernels", "two\nlines"), ("empty", "")])
    assert capsys.readouterr().out == "base     one\nkernels  two lines\nempty\n"


def test_text_from_elsewhere_cannot_drive_the_terminal():
    assert clean("a\x1b[2Jb\x07\r\x9bc\nd\té 你🙂") == "a[2Jbc\nd\té 你🙂"
    assert one_line(" a\n\tb ") == "a b"


def test_json_names_adapters_as_resources():
    decision = Decision(AdapterRef("medical", "1.0.0"), Reason.CLASSIFIED)
    shown = jsonable({"d": decision, "state": AdapterState.READY, "p": Path("x"), "t": (1, None)})
    assert shown["d"]["adapter"] == "adapters/medical/versions/1.0.0"
    assert (shown["state"], shown["p"], shown["t"]) == ("ready", "x", [1, None])
    json.dumps(shown)


def test_numbers_for_people():
    sizes = {0: "0 B", 999: "999 B", 9_400_000: "9.4 MB", 3 * 10**12: "3.0 TB"}
    assert {count: output.size(count) for count in sizes} == sizes
    durations = {0.0004: "0.4 ms", 0.12: "120 ms", 1.5: "1.5 s", 0.0: "0.0 ms"}
    assert {seconds: output.duration(seconds) for seconds in durations} == durations
    times = {None: "", 100.0: "0 s ago", 40.0: "1 min ago", -7100.0: "2 h ago", 200.0: "0 s ago"}
    assert {then: output.ago(then, now=100.0) for then in times} == times
    assert [output.bar(value, 10, plain=True) for value in (0.5, 1.7, -1.0)] == ["#" * 5, "#" * 10, ""]
