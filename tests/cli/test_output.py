import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from router.cli import units
from router.cli.output import clean, jsonable, one_line, print_pairs, print_table
from router.types import AdapterRef, AdapterState, Decision, Reason


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """Run a command with a pseudo-terminal as its stdout."""
    primary, secondary = pty.openpty()
    command = [sys.executable, "-m", "router.cli", *arguments]
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    with subprocess.Popen(command, stdout=secondary, env=kept | {"TERM": "xterm"} | environment) as child:
        os.close(secondary)
        seen = b""
        try:
            while chunk := os.read(primary, 65536):
                seen += chunk
        except OSError:
            pass  # how Linux says that the other side is closed
    os.close(primary)
    assert child.returncode == 0
    return seen.decode()


@pytest.mark.slow
def test_the_header_is_bold_on_a_terminal_only():
    assert "\x1b[1mSETTING" in on_a_terminal("config", "show")
    assert "\x1b" not in on_a_terminal("config", "show", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("config", "show", TERM="dumb")


def test_a_table_in_a_pipe_is_plain_and_never_wrapped(capsys):
    print_table(["A", "B"], [("x", "y" * 500), ("long", "[bold]z[/bold]")])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header == "A     B"
    assert first == "x     " + "y" * 500
    assert second == "long  [bold]z[/bold]"


def test_a_table_of_thousands_is_plain_on_a_terminal_too_and_aligned_as_others(capsys, monkeypatch):
    rows = [("weite Zeichen 你🙂", "", "é"), ("x\x1b[2J", "b\nc", ""), ("", "", "z")]
    print_table(["A", "", "LONG"], rows)
    plain = capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    print_table(["A", "", "LONG"], rows)
    assert capsys.readouterr().out == plain
    monkeypatch.setattr("router.cli.output.MOST_FOLDED", 2)
    print_table(["A", "", "LONG"], rows)
    assert capsys.readouterr().out == plain


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


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (9_400_000, "9.4 MB"), (3 * 10**12, "3.0 TB")]
)
def test_sizes(count, text):
    assert units.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0.4 ms"), (0.12, "120 ms"), (1.5, "1.5 s"), (0.0, "0.0 ms")]
)
def test_durations(seconds, text):
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("then", "text"),
    [(None, ""), (100.0, "0 s ago"), (40.0, "1 min ago"), (-7100.0, "2 h ago"), (200.0, "0 s ago")],
)
def test_how_long_ago(then, text):
    assert units.ago(then, now=100.0) == text


@pytest.mark.parametrize(("value", "length"), [(0.5, 5), (1.7, 10), (-1.0, 0)])
def test_bars_stay_in_their_width(value, length):
    assert units.bar(value, 10, plain=True) == "#" * length
