import io
import json
import os
import signal
import subprocess
import sys

import pytest

from router.cli.ask import labels_text
from router.client import Finished, FinishReason, Label, Usage

COMMAND = [sys.executable, "-m", "router.cli"]


def say(monkeypatch, data: bytes):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_the_answer_is_on_stdout_and_the_decision_on_stderr(cli, remote):
    done = cli("ask", "Which", "chapter?")
    assert (done.code, done.out) == (0, "Chapter I\n")
    first, last = done.err.splitlines()
    assert first == "medical@1.2.0  confidence 0.93  by examples  (classified)"
    assert last.startswith("length  87 + 2 tokens (64 cached)  first after 120 ms")
    assert remote.inference.requests[0].input.text == "Which chapter?"


def test_flags_become_fields(cli, remote):
    arguments = "--adapter medical@1.2.0 --system s -n 5 -t 0 --seed 7 --stop END --stop X"
    assert cli("ask", "hi", *arguments.split(), "--unit", "user-1").code == 0
    request = remote.inference.requests[0]
    assert request.routing.adapter == "adapters/medical/versions/1.2.0"
    assert request.routing.unit == "user-1"
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.seed, list(sampling.stop)) == (5, 7, ["END", "X"])
    assert sampling.HasField("temperature")
    assert [m.text for m in request.input.chat.messages] == ["s", "hi"]


def test_a_mixture_is_sent_in_the_order_said(cli, remote):
    assert cli("ask", "--mix", "medical=0.7, legal@2.0.0=-0.3", "hi").code == 0
    assert [(p.adapter, p.weight) for p in remote.inference.requests[0].routing.mixture] == [
        ("adapters/medical", 0.7),
        ("adapters/legal/versions/2.0.0", -0.3),
    ]


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("medical", "--mix 'medical': say NAME=WEIGHT for each adapter, as in medical=0.7"),
        ("medical=", "say NAME=WEIGHT"),
        ("medical=much", "say NAME=WEIGHT"),
        ("=0.5", "say NAME=WEIGHT"),
        ("medical=0.5,medical=0.2", "--mix names medical twice"),
    ],
)
def test_a_mixture_that_is_none_is_one_line(cli, remote, mix, message):
    done = cli("ask", "--mix", mix, "hi")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err
    assert not remote.inference.requests


def test_raw_is_continued_as_it_is(cli, remote):
    assert cli("ask", "--raw", "Once upon").code == 0
    assert remote.inference.requests[0].input.raw_prompt == "Once upon"


def test_json_is_one_document(cli, remote):
    done = cli("ask", "hi", "--json")
    answer = json.loads(done.out)
    assert answer["text"] == "Chapter I"
    assert answer["decision"]["adapter"] == "adapters/medical/versions/1.2.0"
    assert (answer["finish_reason"], answer["decision"]["reason"]) == ("stop", "classified")
    assert done.err == ""


@pytest.mark.parametrize("arguments", [["-"], []])
def test_stdin_is_taken_whole(cli, remote, monkeypatch, arguments):
    text = "line one\n" + "x" * 200_000 + "\nlast\n"
    say(monkeypatch, text.encode())
    assert cli("ask", *arguments).code == 0
    assert remote.inference.requests[0].input.text == text


@pytest.mark.parametrize(("data", "said"), [(b"\xff\xfe", "not UTF-8: byte 0"), (b" \n", "stdin is empty")])
def test_bad_stdin_is_refused(cli, remote, monkeypatch, data, said):
    say(monkeypatch, data)
    done = cli("ask", "-")
    assert done.code == 2
    assert said in done.err
    assert not remote.inference.requests


def test_doubt_is_shown_and_all_choices_where_wanted(cli, remote):
    sure = Finished(FinishReason.STOP, Usage(), labels=(Label("a", 0.9), Label("b", 0.1)))
    assert labels_text(sure, wanted=False) == ""
    assert labels_text(sure, wanted=True) == "not calibrated:\n 90.0%  a\n 10.0%  b"
    seven = tuple(Label(str(n), 0.125) for n in range(8))
    unsure = Finished(FinishReason.STOP, Usage(), labels=seven, labels_calibrated=True)
    assert labels_text(unsure, wanted=False).splitlines()[-1] == " 37.5%  3 others"
    cli("ask", "--labels", "hi")
    assert remote.inference.requests[-1].want_labels


@pytest.mark.slow
def test_ctrl_c_cancels_the_call(remote):
    remote.inference.hang = True
    with subprocess.Popen([*COMMAND, "ask", "hi"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.read(7) == b"Chapter"
        child.send_signal(signal.SIGINT)
        assert remote.inference.cancelled.wait(10)
        _, err = child.communicate(timeout=10)
    assert child.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.slow
def test_a_closed_pipe_ends_in_silence(tmp_path):
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [*COMMAND, "config", "show"], stdout=closed, stderr=subprocess.PIPE, check=False, cwd=tmp_path
        )
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_the_answer_must_look_like(cli, remote, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    for arguments, field, value in (
        (["--json-schema", '{"type": "string"}'], "json_schema", '{"type": "string"}'),
        (["--json-schema", f"@{tmp_path}/schema.json"], "json_schema", '{"type": "object"}'),
        (["--regex", "[0-9]+"], "regex", "[0-9]+"),
        (["--grammar", "start: WORD"], "grammar", "start: WORD"),
        (["--quote", "a text"], "quote", "a text"),
    ):
        assert cli("ask", "hi", *arguments).code == 0
        sampling = remote.inference.requests[-1].sampling
        assert (sampling.WhichOneof("constraint"), getattr(sampling, field)) == (field, value)
    assert cli("ask", "hi", "--choice", "yes", "--choice", "no").code == 0
    assert list(remote.inference.requests[-1].sampling.choices.values) == ["yes", "no"]


@pytest.mark.parametrize("flag", ["json-schema", "regex", "grammar", "quote"])
def test_an_empty_constraint_is_sent_and_not_dropped(cli, remote, flag):
    assert cli("ask", "hi", f"--{flag}", "").code == 0
    assert remote.inference.requests[-1].sampling.WhichOneof("constraint") == flag.replace("-", "_")


def test_an_empty_file_is_an_empty_constraint(cli, remote, tmp_path):
    (tmp_path / "passage.txt").write_text("")
    assert cli("ask", "hi", "--quote", f"@{tmp_path}/passage.txt").code == 0
    assert remote.inference.requests[-1].sampling.WhichOneof("constraint") == "quote"


def test_two_constraints_and_a_file_that_is_not_there(cli, remote, tmp_path):
    done = cli("ask", "hi", "--regex", "a", "--choice", "b")
    assert (done.code, remote.inference.requests) == (2, [])
    assert "one constraint: leave out --regex or --choice" in done.err
    done = cli("ask", "hi", "--grammar", f"@{tmp_path}/none")
    assert done.code == 2
    assert f"cannot read {tmp_path}/none" in done.err
