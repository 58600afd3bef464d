"""`route learn` on a folder of adapters and a classifier that knows its examples by their words."""

from __future__ import annotations

import json
from datetime import datetime, time
from pathlib import Path
from typing import Any

import pytest

from router.calibration.file import read_calibration
from router.cli.route import store_here
from router.corrections.store import Correction
from router.extensions.calibration.commands.learn import seconds_until
from router.extensions.calibration.commands.local import read_profiles
from tests.commands import cli, own_folder

__all__ = ["cli", "own_folder"]

PLUGIN = '''
from router import hookimpl
from router.routing import Classifier, Scores

class Words(Classifier):
    """The adapter whose examples have most of the words, less those of its negative examples."""
    name = "words"

    def fit(self, adapters):
        self.known = {
            a.name: (set(" ".join(a.examples).split()), set(" ".join(a.negative_examples).split()))
            for a in adapters
        }

    def classify_batch(self, requests):
        return [self.one(r.text.split()) for r in requests]

    def one(self, words):
        scores = {
            name: len(good.intersection(words) - bad.intersection(words)) / (len(set(words)) + 0.1)
            for name, (good, bad) in self.known.items()
        }
        return Scores(scores) if any(scores.values()) else None

@hookimpl
def register_classifiers(register):
    register(Words())
'''
MANIFEST = (
    '# mine\n[adapter]\nname = "{name}"\ndomain = "{name}"\n\n[routing]\nexamples = [{example}] # why\n'
)


@pytest.fixture
def here(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters, a plugin, held-out requests; the state folder is here, too."""
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    monkeypatch.setenv("LORA_ROUTER_BARE", "yes")
    for name, example in (("legal", "contract clause"), ("medical", "fever cough")):
        (own_folder / "adapters" / name).mkdir(parents=True)
        text = MANIFEST.format(name=name, example=json.dumps(example))
        (own_folder / "adapters" / name / "adapter.toml").write_text(text)
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "words.py").write_text(PLUGIN)
    rows = [
        *({"text": "contract", "label": "legal"}, {"text": "fever", "label": "medical"}),
        *({"text": "oak fence", "label": "legal"}, {"text": "broken bone", "label": "medical"}),
        {"text": "joke joke", "label": ""},
    ]
    write(own_folder / "rows.jsonl", rows)
    return own_folder


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(text: str, label: str, chosen: str | None = "") -> dict[str, object]:
    return {"response_id": text, "text": text, "label": label, "chosen": chosen}


GOOD = [said("oak fence neighbour", "legal", ""), said("bone leg", "medical", "legal")]
BAD = [said("joke about judges", "legal", "")]


def manifests(folder: Path) -> dict[str, tuple[str, ...]]:
    return {p.name: p.examples for p in read_profiles([folder / "adapters"])}


def test_what_would_change_and_nothing_is_written(cli, here):
    write(here / "c.jsonl", [*GOOD, {"label": "legal", "response_id": "1"}])
    before = manifests(here)
    done = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0")
    assert done.code == 0, done.err
    assert "1 kept without a text" in done.out
    assert "nothing was written" in done.out
    assert "2 to 3" in done.out
    assert manifests(here) == before
    found = json.loads(
        cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--json").out
    )
    assert found["corrections"] == {"learned_from": 2, "held_back": 0, "left_out": {"kept without a text": 1}}
    assert [(one["adapter"], one["kept"]) for one in found["tried"]] == [("legal", True), ("medical", True)]
    assert found["tried"][0]["addition"] == {
        "examples": ["oak fence neighbour"],
        "negative_examples": ["bone leg"],
    }
    scores = found["scores"]["held_out"]
    assert (scores["before"]["right"], scores["after"]["right"], scores["after"]["requests"]) == (3, 4, 5)
    assert found["scores"]["corrections_learned_from"]["after"]["right"] == 2
    assert {"text": "oak fence", "label": "legal", "source": "", "from": "", "to": "legal"} in found["moved"]
    assert found["written"] == []


def test_what_makes_held_out_requests_worse_is_left_out(cli, here):
    write(here / "c.jsonl", [*GOOD[1:], *BAD])
    found = json.loads(
        cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--write", "--json").out
    )
    kept = {one["adapter"]: one["kept"] for one in found["tried"]}
    assert kept == {"legal": False, "medical": True}
    assert manifests(here) == {"legal": ("contract clause",), "medical": ("fever cough", "bone leg")}
    assert found["written"] == ["adapters/medical/adapter.toml"]
    told = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0")
    assert "left out: it makes held-out requests worse" in told.out


def test_write_keeps_the_rest_of_the_file(cli, here):
    write(here / "c.jsonl", GOOD)
    (here / "adapters" / "legal" / "adapter.toml").chmod(0o640)
    done = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--write")
    assert done.code == 0, done.err
    assert "wrote adapters/legal/adapter.toml" in done.out
    assert "a running server takes them within a minute" in done.out
    path = here / "adapters" / "legal" / "adapter.toml"
    text = path.read_text()
    assert text.startswith("# mine\n[adapter]\n")
    assert '"contract clause",\n  "oak fence neighbour",\n] # why' in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in path.parent.iterdir()] == ["adapter.toml"]


def test_out_leaves_the_adapters_alone(cli, here):
    write(here / "c.jsonl", GOOD)
    (here / "adapters" / "legal" / "adapter.sig").write_text("signed")
    before = manifests(here)
    arguments = ["route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0"]
    refused = cli(*arguments, "--write")
    assert (refused.code, "is signed: write with --out" in refused.err) == (1, True)
    assert manifests(here) == before
    done = cli(*arguments, "--out", "new")
    assert done.code == 0, done.err
    assert manifests(here) == before
    (legal, _) = read_profiles([here / "new"])
    assert legal.examples == ("contract clause", "oak fence neighbour")


def test_a_manifest_that_is_not_understood_is_left_as_it_is(cli, here):
    path = here / "adapters" / "legal" / "adapter.toml"
    path.write_text(path.read_text().replace("[routing]", '["routing"]'))
    write(here / "c.jsonl", GOOD)
    before = [(here / "adapters" / name / "adapter.toml").read_bytes() for name in ("legal", "medical")]
    done = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--write")
    assert (done.code, "cannot tell where its examples end" in done.err) == (1, True)
    assert [(here / "adapters" / n / "adapter.toml").read_bytes() for n in ("legal", "medical")] == before


def test_corrections_of_the_server_here_and_some_of_them_to_test_on(cli, here):
    assert "there are no corrections here" in cli("route", "learn").err
    store = store_here(None)
    for n in range(40):
        store.append(Correction(n, f"{n:032x}", "legal", "", text=f"oak w{n} x{n} y{n}", tenant="acme"))
    found = json.loads(cli("route", "learn", "--json").out)
    back = found["corrections"]["held_back"]
    assert 2 <= back <= 20
    assert found["corrections"]["learned_from"] == 40 - back
    scores = found["scores"]["corrections_held_back"]
    assert scores["before"]["right"] == 0
    assert scores["after"]["forced"] == back  # "oak" was learned from the others
    assert found["scores"]["held_out"]["after"]["requests"] == back
    assert "there are no corrections" in cli("route", "learn", "--tenant", "bravo").err


def test_the_requests_of_this_project_are_held_out_where_they_are_here(cli, here):
    write(here / "c.jsonl", GOOD)
    (here / "recipes" / "routing").mkdir(parents=True)
    write(here / "recipes" / "routing" / "dev.jsonl", [{"text": "cough", "label": "medical"}])
    found = json.loads(cli("route", "learn", "c.jsonl", "--hold-back", "0", "--json").out)
    assert found["scores"]["held_out"]["after"]["requests"] == 1
    write(here / "recipes" / "routing" / "dev.jsonl", [{"text": "cough", "label": "translation"}])
    done = cli("route", "learn", "c.jsonl", "--hold-back", "0")
    assert (done.code, "no adapter is called 'translation'" in done.err) == (2, True)
    assert "nothing to test on: name labelled requests with --rows" in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl: No such file"),
        (["c.jsonl", "--rows", "none.jsonl"], "none.jsonl: No such file"),
        (["empty.jsonl"], "there are no corrections in empty.jsonl"),
        (
            ["labels.jsonl", "--rows", "rows.jsonl"],
            "nothing to learn from 1 corrections: 1 kept without a text",
        ),
        (["c.jsonl", "--hold-back", "1"], "--hold-back is 1.0: it must lie from 0 to below 1"),
        (["c.jsonl", "--hold-back", "nan"], "--hold-back is nan"),
        (["c.jsonl", "--write", "--out", "x"], "say one"),
        (["c.jsonl", "--tenant", "../x"], "no tenant is called '../x'"),
        (["c.jsonl", "--adapters-dir", "plugins"], "there are no adapters here"),
        (["c.jsonl", "--rows", "odd.jsonl"], "odd.jsonl:1: no adapter is called 'astrology'"),
        (["c.jsonl", "--rows", "rows.jsonl", "--calibration", "none.json"], "none.json: No such file"),
    ],
)
def test_bad_input_is_one_line(cli, here, arguments, message):
    write(here / "c.jsonl", GOOD)
    (here / "empty.jsonl").touch()
    write(here / "labels.jsonl", [{"label": "legal", "response_id": "1"}])
    write(here / "odd.jsonl", [{"text": "a", "label": "astrology"}])
    done = cli("route", "learn", *arguments)
    assert done.code in (1, 2)
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.slow
def test_a_calibration_is_taken_as_made_with_the_new_examples(cli, here):
    """So that examples are seen to help though it was made with others."""
    rows = [
        {"text": f"{w} n{n}", "label": a}
        for n in range(80)
        for w, a in (("contract", "legal"), ("fever", "medical"))
    ]
    write(here / "many.jsonl", [*rows, *({"text": f"hello n{n}", "label": ""} for n in range(40))])
    done = cli("route", "calibrate", "many.jsonl")
    assert done.code == 0, done.err
    write(here / "c.jsonl", GOOD)
    arguments = ["route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0"]
    found = json.loads(cli(*arguments, "--json").out)
    assert [one["kept"] for one in found["tried"]] == [True, True]
    assert {m["to"] for m in found["moved"]} == {"legal", "medical"}
    old = in_file(here)
    del old["report"]["rows"]
    (here / "adapters" / "calibration.json").write_text(json.dumps(old))
    done = cli(*arguments, "--write")
    assert "a calibration takes these adapters for newcomers" in done.out
    assert "run `lora-router route calibrate` again" in done.out


def test_auto_learns_every_night_and_survives_one_without_corrections(cli, here, monkeypatch):
    waits: list[float] = []

    def night(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt
        if len(waits) == 2:
            for n in range(3):
                text = f"oak w{n} x{n} y{n}"
                store_here(None).append(Correction(n, f"{n:032x}", "legal", "", text=text))

    monkeypatch.setattr("router.extensions.calibration.commands.learn.sleep", night)
    done = cli("route", "learn", "--auto", "--at", "04:30", "--rows", "rows.jsonl", "--hold-back", "0")
    assert len(waits) == 3
    assert all(0 < wait <= 86400 for wait in waits)
    assert "there are no corrections here" in done.err
    assert manifests(here)["legal"][1:] == ("oak w0 x0 y0", "oak w1 x1 y1", "oak w2 x2 y2")


def test_the_next_night(cli, here):
    assert seconds_until(time(3), datetime(2027, 1, 1, 2, 59)) == 60
    assert seconds_until(time(3), datetime(2027, 1, 1, 3, 0)) == 86400
    done = cli("route", "learn", "--auto", "--at", "25:00")
    assert (done.code, "--at 25:00: must be a time of the day" in done.err) == (2, True)


def test_damaged_lines_are_told(cli, here):
    (here / "c.jsonl").write_bytes(b'{"torn\n' + b"".join(json.dumps(x).encode() + b"\n" for x in GOOD))
    done = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0")
    assert (done.code, "1 lines are no corrections" in done.err) == (0, True)


def calibrated(cli: Any, here: Path) -> None:
    """A calibration of requests with one known word each."""
    pairs = (("contract", "legal"), ("fever", "medical"))
    rows = [{"text": f"{word} {word}{n}", "label": label} for n in range(100) for word, label in pairs]
    rows += [{"text": f"hello hello{n}", "label": ""} for n in range(40)]
    write(here / "many.jsonl", rows)
    write(here / "odd.jsonl", [{"text": f"weather w{n}"} for n in range(120)])
    done = cli("route", "calibrate", "many.jsonl", "--ood", "odd.jsonl")
    assert done.code == 0, done.err


def in_file(here: Path) -> Any:
    return json.loads((here / "adapters" / "calibration.json").read_text())


@pytest.mark.slow
def test_write_proves_the_calibration_again_and_the_new_kind_is_routed(cli, here):
    """With nothing but what the calibration keeps: its requests are gone."""
    calibrated(cli, here)
    for name in ("many.jsonl", "odd.jsonl"):
        (here / name).unlink()
    before = in_file(here)
    write(here / "c.jsonl", [said(f"oak fence f{n} g{n} h{n} i{n}", "legal", "") for n in range(8)])
    done = cli("route", "learn", "c.jsonl", "--hold-back", "0", "--write")
    assert done.code == 0, done.err
    assert "wrote adapters/calibration.json" in done.out
    assert "a running server takes all of it within a minute" in done.out
    after = in_file(here)
    assert after["binding"]["adapters"]["legal"] != before["binding"]["adapters"]["legal"]
    assert after["report"]["rows"] == before["report"]["rows"]
    assert after["report"]["proof"]["error_bound"] <= 0.05
    write(here / "fresh.jsonl", [{"text": "oak fence", "label": "legal"}])
    found = json.loads(cli("route", "evaluate", "fresh.jsonl", "--json").out)
    assert (found["calibration"], found["routing"]["routed"], found["routing"]["error"]) == ("fitted", 1, 0)
    again = cli("route", "learn", "c.jsonl", "--hold-back", "0", "--write")
    assert (again.code, "8 an example already" in again.err) == (1, True)


@pytest.mark.slow
def test_what_would_break_the_target_is_refused_with_the_requests_against_it(cli, here):
    calibrated(cli, here)
    before = manifests(here), (here / "adapters" / "calibration.json").read_bytes()
    lessons = [said(f"weather w{n} w{n + 1} w{n + 2} w{n + 3} w{n + 4}", "legal") for n in range(0, 120, 5)]
    write(here / "c.jsonl", lessons)
    write(here / "rows.jsonl", [{"text": "contract", "label": "legal"}])
    arguments = ["route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--write"]
    done = cli(*arguments)
    assert done.code == 1
    assert "nothing was written: the calibration would not keep its target" in done.err
    assert "requests that stand against it" in done.out
    assert "weather w" in done.out.split("requests that stand against it")[1]
    assert (manifests(here), (here / "adapters" / "calibration.json").read_bytes()) == before
    told = json.loads(cli(*arguments, "--json").out)
    assert told["written"] == []
    assert told["calibration"]["taken"] is False
    assert {(one["label"], one["to"]) for one in told["calibration"]["against"]} == {("", "legal")}


@pytest.mark.slow
def test_a_calibration_that_was_accepted_is_made_again_by_cross_validation(cli, here):
    pairs = (("contract", "legal"), ("fever", "medical"))
    rows = [{"text": f"{word} {word}{n}", "label": label} for n in range(12) for word, label in pairs]
    write(here / "few.jsonl", rows)
    assert cli("route", "calibrate", "few.jsonl", "--accept").code == 0
    (here / "few.jsonl").unlink()
    before = in_file(here)
    write(here / "c.jsonl", [said(f"oak fence f{n} g{n} h{n} i{n}", "legal", "") for n in range(8)])
    write(here / "rows.jsonl", [{"text": "broken fever", "label": "medical"}])
    done = cli("route", "learn", "c.jsonl", "--rows", "rows.jsonl", "--hold-back", "0", "--write")
    assert done.code == 0, done.err
    after = in_file(here)
    assert after["learned"] == before["learned"]
    assert after["target"] == before["target"]
    write(here / "fresh.jsonl", [{"text": "oak fence", "label": "legal"}])
    found = json.loads(cli("route", "evaluate", "fresh.jsonl", "--json").out)
    assert (found["calibration"], found["routing"]["routed"]) == ("fitted", 1)


@pytest.mark.slow
def test_out_has_the_calibration_and_its_requests(cli, here):
    calibrated(cli, here)
    write(here / "c.jsonl", [said(f"oak fence f{n} g{n} h{n} i{n}", "legal", "") for n in range(8)])
    before = (here / "adapters" / "calibration.json").read_bytes()
    done = cli("route", "learn", "c.jsonl", "--hold-back", "0", "--out", "new")
    assert done.code == 0, done.err
    assert (here / "adapters" / "calibration.json").read_bytes() == before
    assert read_calibration(here / "new" / "calibration.json").profiles[0].examples[-1].startswith("oak")
    assert {p.name for p in (here / "new").iterdir()} == {
        *("legal", "calibration.json", "calibration.rows.jsonl")
    }


@pytest.mark.slow
def test_requests_of_another_calibration_are_refused(cli, here):
    calibrated(cli, here)
    with (here / "adapters" / "calibration.rows.jsonl").open("a") as file:
        file.write('{"part": "proof", "text": "x", "label": "legal"}\n')
    write(here / "c.jsonl", GOOD)
    done = cli("route", "learn", "c.jsonl", "--hold-back", "0", "--write")
    assert done.code == 2
    assert "calibration.rows.jsonl has the requests of another calibration" in done.err
