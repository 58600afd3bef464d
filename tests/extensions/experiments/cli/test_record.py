import io
import json

import pytest

from router.v1 import experiments_pb2 as pb


def test_one_outcome_of_an_answer(cli, remote):
    done = cli(
        "experiments", "record", "thumbs_up", "1", "--response", "r-1", "--key", "vote-1", "--time", "5.5"
    )
    assert (done.code, done.out) == (0, "1 counted\n")
    (sent,) = remote.experiments.outcomes
    assert (sent.response_id, sent.metric, sent.value, sent.idempotency_key) == (
        "r-1",
        "thumbs_up",
        1.0,
        "vote-1",
    )
    assert sent.time.ToNanoseconds() == 5_500_000_000


def test_a_metric_that_no_plan_has_is_warned_of(cli, remote, caplog):
    done = cli("experiments", "record", "unplanned", "1", "--response", "r-1")
    assert (done.code, done.out) == (0, "1 counted\n")
    assert "no plan has it" in caplog.text


def test_many_outcomes_from_stdin(cli, remote, monkeypatch):
    lines = [json.dumps({"metric": "m", "value": v, "experiment": "x", "unit": f"u{v}"}) for v in (0, 1, 2)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n\n"))
    done = cli("experiments", "record", "-")
    assert (done.code, done.out) == (1, "2 counted, 1 refused\n")
    assert "line 3: value: must be 0 or 1" in done.err
    assert [o.unit.unit for o in remote.experiments.outcomes] == ["u0", "u1", "u2"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no", "line 1: not JSON"),
        ('{"metric": "m"}', "line 1: must be an object with metric, value and of"),
        ('{"metric": "m", "value": 1, "unti": "u"}', "line 1: must be an object"),
        ('{"metric": "m", "value": "1", "response_id": "r"}', "line 1: value must be a number, not '1'"),
        ('{"metric": "m", "value": NaN, "response_id": "r"}', "line 1: value must be a finite number"),
        ('{"metric": "m", "value": 1, "response_id": 7}', "line 1: response_id must be a text, not 7"),
        ('{"metric": "m", "value": 1, "response_id": "r", "time": "now"}', "line 1: time must be a number"),
        ("[" * 100_000, "line 1: not JSON"),
        ("3", "line 1: must be an object"),
        (
            '{"metric": "m", "value": 1}',
            "line 1: an outcome is of a response_id, or of an experiment and a unit",
        ),
    ],
)
def test_a_wrong_line_is_told_and_nothing_is_sent(cli, remote, monkeypatch, line, told):
    monkeypatch.setattr("sys.stdin", io.StringIO(line))
    done = cli("experiments", "record", "-")
    assert done.code == 2
    assert told in done.err
    assert remote.experiments.outcomes == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "what shall be recorded?"),
        (("m",), 2, "what is the value of m?"),
        (("m", "1"), 2, "an outcome is of a response_id, or of an experiment and a unit"),
        (("m", "1", "--response", "nobody"), 1, "no response 'nobody'"),
    ],
)
def test_a_wrong_outcome_is_told(cli, remote, arguments, code, told):
    done = cli("experiments", "record", *arguments)
    assert done.code == code
    assert told in done.err


def keys(remote):
    return [outcome.idempotency_key for outcome in remote.experiments.outcomes]


def test_lines_may_be_sent_again(cli, remote, monkeypatch):
    """What has no key gets one made of what it says, so that twice is once, and two like lines are two."""
    one = {"metric": "m", "value": 1, "experiment": "x", "unit": "u"}
    lines = [one, one, {**one, "unit": "v"}, {**one, "time": 5}, {**one, "key": "mine"}, {**one, "value": 0}]
    text = "\n".join(map(json.dumps, lines))
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        assert cli("experiments", "record", "-").code == 0
    made = keys(remote)
    assert made[:6] == made[6:]
    assert len(set(made)) == 6
    assert made[4] == "mine"
    assert all(len(key) <= 128 for key in made)


def test_every_wrong_line_is_told(cli, remote, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("no\n\n3\n" + "{}\n" * 30))
    done = cli("experiments", "record", "-")
    assert done.code == 2
    assert "line 1: not JSON" in done.err
    assert "line 3: must be an object" in done.err
    assert done.err.splitlines()[-1] == "lora-router: 32 faults, 12 of them not shown: nothing was sent"
    assert remote.experiments.outcomes == []


def test_stdin_that_is_not_utf_8_is_told(cli, remote, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"metric": "\xff"}'), "utf-8"))
    done = cli("experiments", "record", "-")
    assert (done.code, "stdin is not UTF-8" in done.err) == (2, True)


def test_an_empty_stdin(cli, remote, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    done = cli("experiments", "record", "-")
    assert (done.code, done.out) == (0, "nothing to record\n")


def test_units_of_lines_may_be_hashes_and_refused_lines_are_told_by_their_numbers(cli, remote, monkeypatch):
    remote.experiments.kept["experiments/x"] = pb.Experiment(name="experiments/x")
    one = {"metric": "m", "experiment": "x", "unit_hash": "ab" * 16}
    text = "\n".join(json.dumps(one | {"value": 2 if i % 10 == 3 else 1}) for i in range(600))
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    done = cli("experiments", "record", "-")
    assert (done.code, done.out) == (1, "540 counted, 60 refused\n")
    told = done.err.splitlines()
    assert told[0] == "lora-router: line 4: value: must be 0 or 1"
    assert told[-1] == "lora-router: and 40 more refused"
    assert len(told) == 21
    assert {o.unit.unit_hash for o in remote.experiments.outcomes} == {"ab" * 16}
