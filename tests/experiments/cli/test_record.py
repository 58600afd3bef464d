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
        (("--file", "a.csv"), 2, "name it with --experiment NAME"),
        (("m", "1", "--file", "a.csv", "--experiment", "x"), 2, "--file has the values"),
        (("--file", "a.csv", "--experiment", "x"), 1, "a.csv: No such file"),
        (("--file", "a.txt", "--experiment", "x"), 2, "Files that can be read end with .csv"),
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


@pytest.fixture
def planned(remote):
    remote.experiments.kept["experiments/x"] = pb.Experiment(name="experiments/x")


def test_values_of_a_file(cli, remote, planned, tmp_path):
    (tmp_path / "v.csv").write_text("unit,metric,value,time\na,m,1,\nb,m,0,2026-07-01T12:00:00Z\n")
    for _ in range(2):
        done = cli("experiments", "record", "--experiment", "x", "--file", tmp_path / "v.csv")
        assert (done.code, done.out, done.err) == (0, "2 counted\n", "")
    first, second = remote.experiments.outcomes[:2]
    assert (first.unit.experiment, first.unit.unit, first.value) == ("experiments/x", "a", 1.0)
    assert second.time.seconds == 1_782_907_200
    assert keys(remote)[:2] == keys(remote)[2:]
    assert len(set(keys(remote))) == 2


def test_units_of_a_file_may_be_hashes_and_rows_may_repeat(cli, remote, planned, tmp_path):
    rows = [{"unit_hash": "ab" * 16, "metric": "m", "value": 1}] * 3
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = cli("experiments", "record", "--experiment", "x", "--file", tmp_path / "v.jsonl", "--json")
    assert json.loads(done.out) == {"counted": 3}
    assert "note: v.jsonl: 2 rows have the key of another row: only one of those counts" in done.err
    assert {o.unit.unit_hash for o in remote.experiments.outcomes} == {"ab" * 16}


def test_every_bad_row_is_told_on_its_line_and_nothing_is_sent(cli, remote, planned, tmp_path):
    text = "unit,metric,value\na,m,1\n,m,x\nb,error,1\nc,m,1\n"
    (tmp_path / "v.csv").write_text(text)
    done = cli("experiments", "record", "--experiment", "x", "--file", tmp_path / "v.csv")
    assert done.code == 2
    assert done.err.splitlines() == [
        "lora-router: v.csv:3, column unit: is missing",
        "lora-router: v.csv:3, column value: is 'x', not a number",
        "lora-router: v.csv:4, column metric: is recorded by the server itself; choose another name",
        "lora-router: 3 faults: nothing was sent",
    ]
    assert remote.experiments.outcomes == []


def test_rows_that_the_server_refuses_are_told_by_their_lines(cli, remote, planned, tmp_path):
    rows = "".join(f"u{i},m,{2 if i % 10 == 3 else 1}\n" for i in range(600))
    (tmp_path / "v.csv").write_text(f"unit,metric,value\n{rows}")
    done = cli("experiments", "record", "--experiment", "x", "--file", tmp_path / "v.csv")
    assert (done.code, done.out) == (1, "540 counted, 60 refused\n")
    told = done.err.splitlines()
    assert told[0] == "lora-router: v.csv:5: value: must be 0 or 1"
    assert told[-1] == "lora-router: and 40 more refused"
    assert len(told) == 21


def test_an_experiment_that_is_not_there_is_told_before_anything_is_sent(cli, remote, tmp_path):
    (tmp_path / "v.csv").write_text("unit,metric,value\na,m,1\n")
    done = cli("experiments", "record", "--experiment", "y", "--file", tmp_path / "v.csv")
    assert (done.code, "lora-router experiments list" in done.err) == (1, True)
    assert remote.experiments.outcomes == []
