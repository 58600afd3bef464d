import json


def test_votes_are_shown_with_bars_threshold_and_reason(cli, remote):
    done = cli("route", "Which chapter?")
    assert done.code == 0
    header, keywords, linear, second, *_ = done.out.splitlines()
    assert header.split() == ["CLASSIFIER", "ADAPTER", "CONFIDENCE", "TIME", "EVIDENCE"]
    assert keywords.split()[:2] == ["keywords", "declined"]
    assert linear.split()[:4] == ["linear", "medical", "0.93", "#" * 22]
    assert linear.endswith("icd")
    assert second.split() == ["legal", "0.04", "#"]
    assert "threshold 0.50" in done.out
    assert done.out.endswith("medical@1.2.0  confidence 0.93  by linear  (classified)  in 0.4 ms\n")
    assert remote.inference.requests[0].routing.explain


def test_json(cli, remote):
    votes = json.loads(cli("route", "--json", "hi").out)["votes"]
    assert [(v["classifier"], v["declined"]) for v in votes] == [("keywords", True), ("linear", False)]
