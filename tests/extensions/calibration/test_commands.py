"""`route calibrate` and `route evaluate` on a folder of adapters and a classifier that is often right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.routing.calibration import read_calibration
from tests.commands import cli, own_folder

__all__ = ["cli", "own_folder"]

TOPICS = {"legal": "contract", "medical": "fever", "summarization": "shorten"}
PLUGIN = '''
import zlib
from router import hookimpl
from router.routing import Classifier, Scores

WORDS = {"contract": "legal", "fever": "medical", "shorten": "summarization"}

class Guess(Classifier):
    """Knows one word of each adapter; unsure by a hash of the text."""
    name = "guess"

    def classify_batch(self, requests):
        return [self.one(r.text) for r in requests]

    def one(self, text):
        hits = [n for w, n in WORDS.items() if w in text]
        doubt = (zlib.crc32(text.encode()) % 100) / 250
        return Scores({hits[0]: 0.97 - doubt} if hits else {"legal": 0.05 + doubt / 3})

@hookimpl
def register_classifiers(register):
    register(Guess())
'''


@pytest.fixture
def here(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters, a plugin, and requests; `own_folder` is the working folder."""
    monkeypatch.setenv("LORA_ROUTER_BARE", "yes")
    for name, word in TOPICS.items():
        axis = 'task = "summarization"' if name == "summarization" else f'domain = "{name}"'
        (own_folder / "adapters" / name).mkdir(parents=True)
        (own_folder / "adapters" / name / "adapter.toml").write_text(
            f'[adapter]\nname = "{name}"\n{axis}\n\n[routing]\nexamples = ["a known {word}"]\n'
        )
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "guess.py").write_text(PLUGIN)
    rows = [
        {"text": f"{word} number {i}", "label": name, "source": f"made {i % 2}"}
        for i in range(100)
        for name, word in TOPICS.items()
    ]
    rows += [{"text": f"hello number {i}", "label": "", "source": "talk"} for i in range(30)]
    write(own_folder / "requests.jsonl", rows)
    write(own_folder / "strange.jsonl", [{"text": f"weather number {i}"} for i in range(120)])
    return own_folder


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_calibrate_writes_a_file_that_evaluate_uses(cli, here):
    done = cli("route", "calibrate", "requests.jsonl", "--ood", "strange.jsonl")
    assert done.code == 0, done.err
    assert "wrote adapters/calibration.json" in done.out
    assert "at most 5.0% of requests that are for no adapter are routed" in done.out
    made = read_calibration(here / "adapters" / "calibration.json")
    assert made.adapters == tuple(sorted(TOPICS))
    assert (made.target, made.strange_target, made.delta) == (0.05, 0.05, 0.05)
    (taken,) = (one for one in made.report["tested"] if one["threshold"] == made.threshold)
    assert taken["proven"]
    assert taken["error_bound"] <= 0.05
    assert taken["strange_bound"] <= 0.05
    assert (made.report["rows"], made.report["strange_rows"], made.report["coverage"]) == (330, 120, 1.0)
    found = json.loads(cli("route", "evaluate", "requests.jsonl", "--ood", "strange.jsonl", "--json").out)
    assert (found["threshold"], found["calibration"]) == (made.threshold, made.created)
    assert found["accuracy"] == found["macro_f1"] == found["coverage"] == 1.0
    assert (found["errors"], found["strange_routed"]) == (taken["errors"], taken["strange_routed"])
    assert {name: one["rows"] for name, one in found["sources"].items()} == {
        "made 0": 150,
        "made 1": 150,
        "talk": 30,
    }
    assert [list(TOPICS), 4] == [found["confusion"]["labels"][1:], len(found["confusion"]["table"])]


def test_without_strange_requests_nothing_is_promised_of_them(cli, here):
    done = cli("route", "calibrate", "requests.jsonl", "-o", "made.json")
    assert done.code == 0, done.err
    assert "nothing is promised for requests that are for no adapter" in done.out
    made = read_calibration(here / "made.json")
    assert made.strange_target is None
    assert {one["strange_bound"] for one in made.report["tested"]} == {None}


def test_where_the_target_is_not_proven_the_best_is_shown_and_nothing_written(cli, here):
    write(here / "few.jsonl", [{"text": f"fever {n}", "label": "medical"} for n in range(20)])
    done = cli("route", "calibrate", "few.jsonl")
    assert done.code == 1
    assert "the 20 requests do not prove the target of 5.0% errors; they prove 28.4% errors" in done.err
    assert "About 86 would, if they go wrong as often as these" in done.err
    assert "nothing was written; --accept takes what is shown" in done.err
    assert not (here / "adapters" / "calibration.json").exists()
    done = cli("route", "calibrate", "few.jsonl", "--accept", "--json")
    assert done.code == 0, done.err
    made = read_calibration(here / "adapters" / "calibration.json")
    assert json.loads(done.out)["target"] == made.target == pytest.approx(0.284, abs=1e-3)
    assert made.adapters == ("medical",)


def test_classifiers_that_are_no_good_prove_nothing_with_any_number(cli, here):
    write(here / "wrong.jsonl", [{"text": f"fever {n}", "label": "legal"} for n in range(90)])
    done = cli("route", "calibrate", "wrong.jsonl", "--accept")
    assert done.code == 1
    assert "they prove nothing at all. No number of requests would at this error" in done.err


def test_evaluate_without_a_calibration_takes_the_threshold_of_the_settings(cli, here, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_ABSTAIN_THRESHOLD", "0.8")
    done = cli("route", "evaluate", "requests.jsonl", "--ood", "strange.jsonl")
    assert done.code == 0, done.err
    for words in (
        "0.800 (no calibration)",
        "accuracy 1.000, macro-F1 1.000",
        "0 of 120 routed",
        "confusion: true label down, where it goes across",
    ):
        assert words in done.out
    assert cli("route", "calibrate", "requests.jsonl").code == 0
    assert "(calibration of " in cli("route", "evaluate", "requests.jsonl").out
    assert "(no calibration)" in cli("route", "evaluate", "requests.jsonl", "--calibration", "").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "none.jsonl"], "none.jsonl: No such file"),
        (["calibrate", "empty.jsonl"], "empty.jsonl is empty"),
        (["calibrate", "unknown.jsonl"], "unknown.jsonl:2: no adapter is called 'astrology'"),
        (["calibrate", "requests.jsonl", "--target", "5"], "--target is 5.0: it must lie between 0 and 1"),
        (
            ["evaluate", "requests.jsonl", "--calibration", "damaged.json"],
            "damaged.json is damaged: not JSON",
        ),
        (["evaluate", "requests.jsonl", "--calibration", "none.json"], "none.json: No such file"),
        (["evaluate", "requests.jsonl", "--plot", "x.txt"], "a picture is .png, .svg, .pdf or .html"),
    ],
)
def test_bad_input_is_one_line(cli, here, arguments, message):
    (here / "empty.jsonl").touch()
    (here / "damaged.json").write_text('{"format": 1, "thresh')
    write(here / "unknown.jsonl", [{"text": "b", "label": ""}, {"text": "a", "label": "astrology"}])
    done = cli("route", *arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("setting", "folder", "message"),
    [
        ("ADAPTERS_DIR", "plugins", "there are no adapters here"),
        ("PLUGINS_DIR", "adapters", "no classifier can be asked here"),
    ],
)
def test_the_folders_are_those_of_the_settings(cli, here, monkeypatch, setting, folder, message):
    monkeypatch.setenv(f"LORA_ROUTER_{setting}", folder)
    done = cli("route", "evaluate", "requests.jsonl")
    assert done.code == 1
    assert message in done.err
    assert len(done.err.splitlines()) == 1


def test_examples_and_others_of_a_group_are_left_out(cli, here):
    rows = [{"text": text, "label": "medical"} for text in ("a known  fever", "fever")]
    rows += [{"text": f"fever {n}", "label": "medical", "group": "g"} for n in range(3)]
    write(here / "own.jsonl", rows)
    done = cli("route", "evaluate", "own.jsonl", "--json")
    assert "1 requests are examples of an adapter and are left out" in done.err
    assert "2 requests are of the same group as another one and are left out" in done.err
    assert json.loads(done.out)["rows"] == 2


def test_a_classifier_that_loses_its_votes_proves_nothing(cli, here):
    silent = PLUGIN.replace("return [self.one(r.text) for r in requests]", "raise RuntimeError")
    (here / "plugins" / "guess.py").write_text(silent)
    done = cli("route", "calibrate", "requests.jsonl")
    assert done.code == 1
    assert "classifier guess lost too many votes" in done.err


@pytest.mark.slow
def test_a_classifier_asks_the_base_without_a_server(cli, here):
    (here / "plugins" / "reads.py").write_text(
        "from router import hookimpl\nfrom router.routing import Classifier, Scores\n"
        "class Reads(Classifier):\n    name = 'reads'\n"
        "    def bind(self, base): self.base = base\n"
        "    def classify_batch(self, requests):\n"
        "        states = self.base.hidden([r.text for r in requests])\n"
        "        return [Scores({'legal': 0.99}, evidence=str(len(row))) for row in states]\n"
        "@hookimpl\ndef register_classifiers(register):\n    register(Reads(), priority=9)\n"
    )
    write(here / "own.jsonl", [{"text": f"contract {i}", "label": "legal"} for i in range(3)])
    done = cli("route", "evaluate", "own.jsonl", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["decided_by"] == {"reads": 3}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "html"])
def test_error_and_coverage_as_a_picture(cli, here, kind):
    pytest.importorskip("matplotlib")
    assert cli("route", "evaluate", "requests.jsonl", "--plot", f"risk.{kind}").code == 0
    begins = {"png": b"\x89PNG", "html": b"<!doctype html>"}
    assert (here / f"risk.{kind}").read_bytes().startswith(begins[kind])
