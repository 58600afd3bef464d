import pytest

from router.cli import command
from router.errors import ConfigError


def lines(done):
    return done.err.strip().splitlines()


def test_no_server_says_how_to_start_one(cli):
    done = cli("ask", "hi", "--server", "127.0.0.1:1")
    assert done.code == 1
    (line,) = lines(done)
    assert "no server answers at 127.0.0.1:1: start one with `lora-router serve`" in line


def test_a_host_that_is_not_known_was_never_running(cli):
    done = cli("ask", "hi", "--server", "nowhere.invalid:50051")
    assert done.code == 1
    expected = "nowhere.invalid:50051 cannot be resolved: no such host is known; --server takes HOST:PORT"
    assert lines(done) == [f"lora-router: {expected}"]


def test_an_answer_that_breaks_off_ends_its_line(cli, remote):
    remote.inference.hang = True
    done = cli("ask", "hi", "--timeout", "0.5")
    assert (done.code, done.out) == (1, "Chapter\n")
    said = "no whole answer within the timeout (raise --timeout or lower --max-tokens)"
    assert lines(done)[-1] == f"lora-router: {said}"


def test_without_a_flag_the_configured_address_is_asked(cli, own_folder):
    (own_folder / "lora-router.toml").write_text('listen = "0.0.0.0:2"\n')
    assert "127.0.0.1:2" in cli("adapters", "list").err


def test_an_unknown_adapter_says_where_to_look(cli, remote):
    done = cli("ask", "hi", "--adapter", "nobody", "--json")
    assert done.code == 1
    assert lines(done) == ["lora-router: adapter 'nobody' not found (see `lora-router adapters list`)"]


def test_bad_fields_are_named(cli, remote):
    done = cli("ask", "hi", "--temperature", "-1", "--json")
    assert done.code == 2
    assert lines(done) == ["lora-router: sampling.temperature: must be in [0, 2]"]


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
