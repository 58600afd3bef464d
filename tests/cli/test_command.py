import pytest

from router.cli import command
from router.errors import ConfigError


def lines(done):
    return done.err.strip().splitlines()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command 'bogus'; see 'lora-router --help'"),
        (["ask", "--bogus"], "see 'lora-router ask --help'"),
        (["adapters", "show"], "see 'lora-router adapters show --help'"),
        (["ask", "hi", "--seed", "x"], "see 'lora-router ask --help'"),
    ],
)
def test_misuse_is_one_line_and_exit_2(cli, arguments, said):
    done = cli(*arguments)
    assert done.code == 2
    (line,) = lines(done)
    assert said in line
    assert line.startswith("lora-router: ")


def test_a_bug_is_one_line_too(cli, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr("router.cli.connect.target_of", broken)
    done = cli("adapters", "list")
    assert done.code == 1
    (line,) = lines(done)
    assert line.startswith("lora-router: unexpected ZeroDivisionError: one two; run it again with")
    monkeypatch.setenv("LORA_ROUTER_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        cli("adapters", "list")


def test_a_text_of_several_lines_becomes_one(cli, monkeypatch):
    def broken(*_, **__):
        raise ConfigError("model 'x' cannot be loaded:\n(1) this\n(2) that")

    monkeypatch.setattr("router.cli.connect.target_of", broken)
    assert lines(cli("adapters", "list")) == ["lora-router: model 'x' cannot be loaded: (1) this (2) that"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(OSError, match="absent") as caught:
        (tmp_path / "absent").read_text()
    assert command.explain(caught.value) == (f"{tmp_path / 'absent'}: No such file or directory", 1)
