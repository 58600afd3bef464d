import io
import json

import pytest


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
        (("m",), 2, "what is the value of m?"),
        (("m", "1"), 2, "an outcome is of a response_id, or of an experiment and a unit"),
        (("m", "1", "--response", "nobody"), 1, "no response 'nobody'"),
    ],
)
def test_a_wrong_outcome_is_told(cli, remote, arguments, code, told):
    done = cli("experiments", "record", *arguments)
    assert done.code == code
    assert told in done.err
