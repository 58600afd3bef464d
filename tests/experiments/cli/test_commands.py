import json

import pytest

from router.v1 import experiments_pb2 as pb


@pytest.fixture
def planned(cli, remote):
    """An experiment on the scripted server."""
    done = cli(
        *("experiments", "create", "medical-v2", "--route", "medical", "--metric", "thumbs_up"),
        *("--arm", "old=medical@1.0.0", "--arm", "new=medical@1.1.0", "--hypothesis", "1.1.0 helps"),
    )
    assert done.code == 0, done.err
    return remote.experiments


@pytest.mark.slow
def test_what_runs_is_listed_with_its_warnings(cli, planned):
    cli("experiments", "start", "medical-v2")
    planned.kept["experiments/medical-v2"].warnings.append("units look like request ids")
    header, row = cli("experiments", "list").out.splitlines()
    assert header.split()[:3] == ["NAME", "STATE", "ROUTE"]
    assert row.startswith("medical-v2  running  medical  split  old 0.5, new 0.5  thumbs_up  1 ")
    assert row.endswith("units look like request ids")
    (found,) = json.loads(cli("experiments", "list", "--json").out)
    assert found["spec"]["arms"][1]["adapter"] == "adapters/medical/versions/1.1.0"


def test_an_empty_list_says_how_to_begin(cli, remote):
    assert "experiments create --example" in cli("experiments", "list").out


def test_show_tells_the_plan_and_the_salts(cli, planned):
    cli("experiments", "start", "medical-v2", "--etag", "e1")
    assert planned.requests[-1].etag == "e1"
    lines = dict(line.split("  ", 1) for line in cli("experiments", "show", "medical-v2").out.splitlines())
    shown = {key: value.strip() for key, value in lines.items()}
    assert shown["arm old"] == "0.5 of units: medical@1.0.0 (control)"
    assert shown["decides"] == "thumbs_up: proportion, more is better"
    assert shown["phase 1"].endswith("salts: enrolment a, variant b")
    assert shown["window"] == "1 day for outcomes"


def test_stop_says_why(cli, planned):
    done = cli("experiments", "stop", "medical-v2", "--reason", "release moved")
    assert "stopped: release moved" in done.out
    assert planned.requests[-1].reason == "release moved"


def test_promote_tells_the_versions_and_how_to_undo(cli, planned):
    done = cli("experiments", "promote", "medical-v2")
    assert done.out.splitlines() == [
        "medical@1.1.0 is the default, before it was medical@1.0.0",
        "undo it: lora-router experiments rollback medical-v2",
    ]
    assert (planned.requests[-1].arm, planned.requests[-1].force) == ("", False)
    cli("experiments", "promote", "medical-v2", "new", "--force", "--reason", "ticket 7")
    sent = planned.requests[-1]
    assert (sent.arm, sent.force, sent.reason) == ("new", True, "ticket 7")
    done = cli("experiments", "rollback", "medical-v2", "--reason", "complaints", "--json")
    assert json.loads(done.out)["default"] == "adapters/medical/versions/1.0.0"


def test_delete_forgets_and_a_missing_one_is_told(cli, planned):
    assert cli("experiments", "delete", "medical-v2").out == "medical-v2 is forgotten\n"
    done = cli("experiments", "show", "medical-v2")
    assert (done.code, done.out) == (1, "")
    assert "experiment 'experiments/medical-v2' not found" in done.err
    assert "lora-router experiments list" in done.err


def test_a_router_arm_is_told(cli, planned):
    kept = planned.kept["experiments/medical-v2"]
    kept.route = ""
    kept.arms[1].CopyFrom(
        pb.Experiment.Arm(name="new", weight=0.5, router=pb.Experiment.RouterVariant(threshold=0.4))
    )
    out = cli("experiments", "show", "medical-v2").out
    assert "0.5 of units: router with threshold 0.4" in out
    assert "the router: all requests that pin no adapter" in out
