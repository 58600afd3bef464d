import io
import re

import pytest


@pytest.fixture
def talk(cli, remote, monkeypatch):
    """`lora-router chat` with these lines as its input."""

    def call(*lines, flags=()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
        return cli("chat", *flags)

    return call


def sent(remote, number):
    """A request's turns, or its text where it is a single one."""
    given = remote.inference.requests[number].input
    return [turn.text for turn in given.chat.messages] or [given.text]


def test_a_turn_is_sent_with_those_before_it(talk, remote):
    done = talk("Which chapter?", "And this?")
    assert (done.code, done.out) == (0, "Chapter I\nChapter I\n")
    assert sent(remote, 0) == ["Which chapter?"]
    assert sent(remote, 1) == ["Which chapter?", "Chapter I", "And this?"]
    assert "medical@1.2.0  confidence 0.93  by examples  (classified)" in done.err


def test_a_new_conversation_has_no_turns_and_keeps_the_instruction(talk, remote):
    talk("/system Be brief.", "one", "/clear", "two", "/system", "three")
    assert sent(remote, 0) == ["Be brief.", "one"]
    assert sent(remote, 1) == ["Be brief.", "two"]
    assert sent(remote, 2) == ["two", "Chapter I", "three"]


def test_who_answers_can_be_named_and_left_to_routing_again(talk, remote):
    done = talk("/adapter medical@1.2.0", "one", "/adapter auto", "two", "/adapter")
    named = [request.routing.adapter for request in remote.inference.requests]
    assert named == ["adapters/medical/versions/1.2.0", ""]
    assert "answers: auto; adapters: " in done.err


def test_a_line_goes_on_after_a_backslash(talk, remote):
    talk("first\\", "second")
    assert sent(remote, 0) == ["first\nsecond"]


def test_commands_before_any_answer_and_unknown_ones_say_what_to_do(talk, remote):
    done = talk("/why", "/wy", "/help")
    assert done.code == 0
    assert done.err.count("nothing was answered yet") == 1
    assert "there is no command /wy: /help lists them" in done.err
    assert "/adapter [NAME]" in done.out
    assert not remote.inference.requests


def test_why_shows_votes_and_quit_ends(talk, remote):
    done = talk("one", "/why", "/quit", "two")
    assert remote.inference.requests[0].routing.explain
    assert "CLASSIFIER" in done.out or "medical@1.2.0" in done.out
    assert re.search(r"^response \S+$", done.out, re.MULTILINE)
    assert len(remote.inference.requests) == 1


def test_an_error_ends_neither_the_conversation_nor_its_turns(talk, remote):
    done = talk("one", "/adapter nobody", "what?", "/adapter auto", "two")
    assert done.code == 0
    assert "error: adapter 'nobody' not found" in done.err
    assert sent(remote, -1) == ["one", "Chapter I", "two"]


def test_no_server_is_one_line(cli, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n")))
    done = cli("chat", "--server", "127.0.0.1:1")
    assert "no server answers at 127.0.0.1:1" in done.err
