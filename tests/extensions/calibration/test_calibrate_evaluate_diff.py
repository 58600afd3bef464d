"""`route calibrate | evaluate | diff` on a folder of adapters and a classifier that is often right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import cli, own_folder

__all__ = ["cli", "own_folder"]

TOPICS = {"legal": "contract", "medical": "fever", "summarization": "shorten"}
PLUGIN = '''
import zlib
from router import hookimpl
from router.routing import Classifier, Scores

WORDS = {"contract": "legal", "fever": "medical", "shorten": "summarization", "recipe": "cooking"}

class Guess(Classifier):
    """Knows one word of each adapter; unsure by a hash of the text."""
    name = "guess"
    version = "VERSION"
    known = ()

    def fit(self, adapters):
        self.known = tuple(a.name for a in adapters)

    def classify_batch(self, requests):
        return [self.one(r.text) for r in requests]

    def one(self, text):
        hits = [n for w, n in WORDS.items() if w in text and n in self.known]
        doubt = (zlib.crc32(text.encode()) % 100) / 250
        return Scores({hits[0]: 0.97 - doubt} if hits else {self.known[0]: 0.05 + doubt / 3})

@hookimpl
def register_classifiers(register):
    register(Guess())
'''


def manifest(name: str) -> str:
    axis = 'task = "summarization"' if name == "summarization" else f'domain = "{name}"'
    word = TOPICS.get(name, "recipe")
    return f'[adapter]\nname = "{name}"\n{axis}\n\n[routing]\nexamples = ["a known {word}"]\n'


@pytest.fixture
def here(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters, a plugin, and requests; `own_folder` is the working folder."""
    monkeypatch.setenv("LORA_ROUTER_BARE", "yes")
    for name in TOPICS:
        (own_folder / "adapters" / name).mkdir(parents=True)
        (own_folder / "adapters" / name / "adapter.toml").write_text(manifest(name))
    (own_folder / "plugins").mkdir()
    plugin(own_folder, "1")
    rows = [
        {"text": f"{word} number {i}", "label": name, "source": f"made {i % 2}"}
        for i in range(100)
        for name, word in TOPICS.items()
    ]
    rows += [{"text": f"hello number {i}", "label": "", "source": "talk"} for i in range(30)]
    write(own_folder / "requests.jsonl", rows)
    write(own_folder / "strange.jsonl", [{"text": f"weather number {i}"} for i in range(120)])
    return own_folder


def plugin(folder: Path, version: str) -> None:
    (folder / "plugins" / "guess.py").write_text(PLUGIN.replace("VERSION", version))


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.slow
def test_calibrate_writes_a_file_that_evaluate_uses(cli, here):
    done = cli("route", "calibrate", "requests.jsonl", "--ood", "strange.jsonl")
    assert done.code == 0, done.err
    assert "wrote adapters/calibration.json" in done.out
    assert "proving on 221 requests and 80 out-of-distribution ones" in done.err
    said = json.loads((here / "adapters" / "calibration.json").read_text())
    assert said["report"]["proof"]["error_bound"] <= 0.05
    assert said["report"]["counts"]["fitted_on"] == 109
    assert list(said["binding"]["adapters"]) == sorted(TOPICS)
    found = json.loads(cli("route", "evaluate", "requests.jsonl", "--ood", "strange.jsonl", "--json").out)
    assert found["calibration"] == "fitted"
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["routing"]["error"] <= 0.05
    assert found["ood"]["share"] <= 0.05 < 0.95 < found["ood"]["auroc"]
    assert {name: one["rows"] for name, one in found["sources"].items()} == {
        "made 0": 150,
        "made 1": 150,
        "talk": 30,
    }
    assert found["latency"].keys() == {"guess"}
    assert found["risk_coverage"][-1][1] == 1.0


LEARNER = """
from router import hookimpl
from router.routing import Classifier, Scores

class Learner(Classifier):
    name = "learner"

    def fit(self, adapters):
        self.known = {a.name: set(" ".join(a.examples).split()) for a in adapters}

    def classify_batch(self, requests):
        return [self.one(set(r.text.split())) for r in requests]

    def one(self, words):
        hits = {name: 0.9 * len(known & words) / len(words) for name, known in self.known.items()}
        return Scores(hits) if any(hits.values()) else None

@hookimpl
def register_classifiers(register):
    register(Learner())
"""


def few(folder: Path, each: int = 5) -> None:
    """Requests for each adapter in words that no example has; the classifier can learn them."""
    (folder / "plugins" / "guess.py").write_text(LEARNER)
    names = {"legal": "lease rent", "medical": "ache pill", "summarization": "gist brief"}
    rows = [{"text": f"{w} n{i}", "label": n} for i in range(each) for n, w in names.items()]
    write(folder / "few.jsonl", rows)


def test_where_the_target_cannot_be_proven_the_best_is_shown_and_nothing_written(cli, here):
    few(here)
    done = cli("route", "calibrate", "few.jsonl")
    assert done.code == 1
    assert "the target of 5.0% cannot be proven; these requests support" in done.out
    assert "labelled requests would prove it" in done.out
    assert "nothing was written; --accept takes what is shown" in done.err
    assert "requests to test on prove nothing" in done.err
    assert not (here / "adapters" / "calibration.json").exists()
    found = json.loads(cli("route", "calibrate", "few.jsonl", "--json").out)
    assert (found["file"], found["method"], found["needed"] >= 89) == (None, "cross-validation", True)


def test_what_is_accepted_routes_with_what_was_learned(cli, here):
    few(here)
    done = cli("route", "calibrate", "few.jsonl", "--accept")
    assert done.code == 0, done.err
    assert "strange requests of this project are used" in done.err
    said = json.loads((here / "adapters" / "calibration.json").read_text())
    assert said["target"] > 0.05
    assert said["learned"]["legal"] == [f"lease rent n{i}" for i in (0, 1, 2, 3, 4)]
    write(here / "fresh.jsonl", [{"text": "pill ache n4", "label": "medical"}])
    found = json.loads(cli("route", "evaluate", "fresh.jsonl", "--json").out)
    assert found["calibration"] == "fitted"
    assert found["routing"]["routed"] == 1
    own = cli("route", "evaluate", "few.jsonl", "fresh.jsonl", "--json")
    assert json.loads(own.out)["rows"] == 1
    assert "15 requests are examples of an adapter and are left out" in own.err


@pytest.mark.slow
def test_few_requests_that_are_not_for_the_proof_are_learned(cli, here):
    few(here, 32)
    done = cli("route", "calibrate", "few.jsonl")
    assert done.code == 0, done.err
    said = json.loads((here / "adapters" / "calibration.json").read_text())
    assert "method" not in said["report"]
    assert said["report"]["proof"]["error_bound"] <= 0.05
    learned = {text for texts in said["learned"].values() for text in texts}
    kept = [json.loads(x) for x in (here / "adapters" / "calibration.rows.jsonl").read_text().splitlines()]
    proof = {row["text"] for row in kept if row["part"] == "proof"}
    assert (len(learned), len(proof), learned & proof) == (33, 63, set())


@pytest.mark.slow
def test_learn_takes_an_estimate_where_a_proof_could_be_had(cli, here):
    files = ("requests.jsonl", "--ood", "strange.jsonl")
    done = cli("route", "calibrate", *files, "--learn")
    assert done.code == 1
    assert "classifiers learn the requests, so that no proof is left" in done.err
    assert cli("route", "calibrate", *files, "--learn", "--accept").code == 0
    said = json.loads((here / "adapters" / "calibration.json").read_text())
    assert (said["report"]["method"], len(said["learned"]["legal"])) == ("cross-validation", 100)


@pytest.mark.slow
def test_votes_that_are_kept_are_not_asked_for_again(cli, here):
    calibrate = ("route", "calibrate", "requests.jsonl", "--ood", "strange.jsonl", "--votes", "votes.json")
    assert cli(*calibrate, "--output", "one.json").code == 0
    silent = PLUGIN.replace("return [self.one(r.text) for r in requests]", "raise RuntimeError")
    (here / "plugins" / "guess.py").write_text(silent.replace("VERSION", "1"))
    done = cli(*calibrate, "--output", "two.json")
    assert done.code == 0, done.err
    one, two = (json.loads((here / name).read_text()) for name in ("one.json", "two.json"))
    assert one | {"created": ""} == two | {"created": ""}
    (here / "plugins" / "guess.py").write_text(silent.replace("VERSION", "2"))
    done = cli(*calibrate, "--output", "three.json")
    assert done.code == 2
    assert "lost" in done.err


def test_evaluate_without_a_calibration_is_the_plain_rule(cli, here):
    done = cli("route", "evaluate", "requests.jsonl", "--ood", "strange.jsonl")
    assert done.code == 0, done.err
    assert "calibration          none" in done.out
    assert "accuracy 1.000, macro-F1 1.000" in done.out
    assert "0 of 120 routed, 0.0%" in done.out
    assert "confusion: true label down, choice across" in done.out


@pytest.mark.slow
def test_another_target_is_a_setting(cli, here, monkeypatch):
    files = ["requests.jsonl", "--ood", "strange.jsonl"]
    assert cli("route", "calibrate", *files).code == 0
    usual = json.loads(cli("route", "evaluate", *files, "--json").out)
    monkeypatch.setenv("LORA_ROUTER_TARGET_ERROR", "0.3")
    monkeypatch.setenv("LORA_ROUTER_TARGET_OOD", "0.3")
    loose = json.loads(cli("route", "evaluate", *files, "--json").out)
    assert loose["target"] == 0.3
    assert loose["routing"]["routed"] >= usual["routing"]["routed"]
    monkeypatch.setenv("LORA_ROUTER_TARGET_ERROR", "0.000001")
    refused = cli("route", "evaluate", *files)
    assert refused.code == 2
    assert "no threshold keeps the error under" in refused.err
    monkeypatch.setenv("LORA_ROUTER_TARGET_ERROR", "2")
    assert "target_error" in cli("route", "evaluate", *files).err


@pytest.mark.slow
def test_curve_shows_every_threshold_and_where_the_calibration_stands(cli, here):
    files = ["requests.jsonl", "--ood", "strange.jsonl"]
    missing = cli("route", "curve", *files)
    assert missing.code == 1
    assert "there is no calibration here" in missing.err
    assert cli("route", "calibrate", *files).code == 0
    said = json.loads((here / "adapters" / "calibration.json").read_text())
    done = cli("route", "curve", *files, "--more", "300", "--plot", "curve.html")
    assert done.code == 0, done.err
    assert "<svg" in (here / "curve.html").read_text()
    (stands,) = (line for line in done.out.splitlines() if "it stands here" in line)
    assert stands.split()[0] == f"{said['threshold']:.3f}"
    assert done.out.splitlines()[-1].split()[:2] == ["300", "300"]
    found = json.loads(cli("route", "curve", *files, "--target-error", "0.2", "--json").out)
    assert found["goal"]["target"] == 0.2
    (now,) = (p for p in found["points"] if p["threshold"] == found["threshold"])
    assert now["routed"] == now["errors"] + round(now["routed"] * (1 - now["error"]))
    plugin(here, "2")
    stale = cli("route", "curve", *files)
    assert stale.code == 1
    assert "stale: classifier guess changed" in stale.err


@pytest.mark.slow
def test_another_set_of_adapters_or_classifiers_is_said(cli, here, monkeypatch):
    assert cli("route", "calibrate", "requests.jsonl").code == 0
    plugin(here, "2")
    found = json.loads(cli("route", "evaluate", "requests.jsonl", "--json").out)
    assert found["calibration"] == "stale: classifier guess changed"
    loose = json.loads(cli("route", "evaluate", "requests.jsonl", "--calibration", "", "--json").out)
    assert loose["calibration"] == ""
    assert loose["routing"]["routed"] > 0
    monkeypatch.setenv("LORA_ROUTER_STRICT_THRESHOLD", "1")
    strict = json.loads(cli("route", "evaluate", "requests.jsonl", "--json").out)
    assert strict["routing"]["routed"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "none.jsonl"], "none.jsonl: No such file"),
        (["calibrate", "empty.jsonl"], "empty.jsonl is empty"),
        (["calibrate", "unknown.jsonl"], "unknown.jsonl:1: no adapter is called 'astrology'"),
        (["calibrate", "requests.jsonl", "--target", "5"], "--target is 5.0: it must lie between 0 and 1"),
        (
            ["evaluate", "requests.jsonl", "--calibration", "damaged.json"],
            "damaged.json is damaged: not JSON",
        ),
        (["evaluate", "requests.jsonl", "--calibration", "none.json"], "none.json: No such file"),
        (["evaluate", "requests.jsonl", "--plot", "x.txt"], "a picture is .png, .svg, .pdf or .html"),
        (["evaluate", "requests.jsonl", "--adapters-dir", "plugins"], "there are no adapters here"),
        (["evaluate", "requests.jsonl", "--plugins-dir", "adapters"], "no classifier can be asked here"),
        (["curve", "none.jsonl"], "none.jsonl: No such file"),
        (["curve", "requests.jsonl", "--plot", "x.txt"], "a picture is .png, .svg, .pdf or .html"),
        (["diff", "--with", "plugins"], "plugins has no adapter.toml"),
    ],
)
def test_bad_input_is_one_line(cli, here, arguments, message):
    (here / "empty.jsonl").touch()
    (here / "damaged.json").write_text('{"format": 1, "thresh')
    write(here / "unknown.jsonl", [{"text": "a", "label": "astrology"}])
    few = [{"text": f"{w} {i}", "label": n} for i in range(9) for n, w in TOPICS.items()]
    write(here / "few.jsonl", few)
    done = cli("route", *arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert len(done.err.splitlines()) <= 2


def test_examples_of_adapters_are_left_out(cli, here):
    write(
        here / "own.jsonl",
        [{"text": "a known  fever", "label": "medical"}, {"text": "fever", "label": "medical"}],
    )
    done = cli("route", "evaluate", "own.jsonl", "--json")
    assert "1 requests are examples of an adapter and are left out" in done.err
    assert json.loads(done.out)["rows"] == 1


def test_a_classifier_that_cannot_be_fitted_or_asks_the_base_is_left_out(cli, here):
    (here / "plugins" / "others.py").write_text(
        "from router import hookimpl\nfrom router.routing import Classifier\n"
        "class Broken(Classifier):\n    name = 'broken'\n"
        "    def fit(self, adapters): raise ValueError('no')\n"
        "    def classify_batch(self, requests): return [None] * len(requests)\n"
        "class Asks(Classifier):\n    name = 'asks'\n"
        "    def bind(self, base): pass\n"
        "    def classify_batch(self, requests): return [None] * len(requests)\n"
        "@hookimpl\ndef register_classifiers(register):\n    register(Broken())\n    register(Asks())\n"
    )
    done = cli("route", "calibrate", "requests.jsonl", "--no-base", "--json")
    assert done.code == 0, done.err
    assert "classifier asks is left out: it asks the base model, which --no-base leaves out" in done.err
    assert "classifier broken is left out: ValueError at others.py" in done.err
    assert json.loads((here / "adapters" / "calibration.json").read_text())["left_out"] == ["asks", "broken"]


@pytest.mark.slow
def test_a_classifier_asks_the_base_without_a_server(cli, here):
    (here / "plugins" / "reads.py").write_text(
        "from router import hookimpl\nfrom router.routing import Classifier, Scores\n"
        "class Reads(Classifier):\n    name = 'reads'\n"
        "    def bind(self, base): self.base = base\n"
        "    def classify_batch(self, requests):\n"
        "        states = self.base.hidden([r.text for r in requests])\n"
        "        return [Scores({'legal': 0.5}, evidence=str(len(row))) for row in states]\n"
        "@hookimpl\ndef register_classifiers(register):\n    register(Reads(), priority=9)\n"
    )
    write(here / "own.jsonl", [{"text": f"contract {i}", "label": "legal"} for i in range(3)])
    done = cli("route", "evaluate", "own.jsonl", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["skipped"], found["routing"]["coverage"]) == ({}, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "html"])
def test_the_curve_as_a_picture(cli, here, kind):
    pytest.importorskip("matplotlib")
    assert cli("route", "evaluate", "requests.jsonl", "--plot", f"risk.{kind}").code == 0
    begins = {"png": b"\x89PNG", "html": b"<!doctype html>"}
    assert (here / f"risk.{kind}").read_bytes().startswith(begins[kind])


def test_diff_tells_what_a_new_adapter_takes(cli, here):
    (here / "new" / "cooking").mkdir(parents=True)
    (here / "new" / "cooking" / "adapter.toml").write_text(manifest("cooking"))
    write(here / "more.jsonl", [{"text": "recipe for dinner"}, {"text": "fever again", "label": "medical"}])
    done = cli("route", "diff", "--with", "new/cooking", "more.jsonl", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["adapter"], found["known"]) == ("cooking", 6)
    assert [(m["text"], m["from"], m["to"]) for m in found["moved"]] == [
        ("a known recipe", "", "cooking"),
        ("recipe for dinner", "", "cooking"),
    ]
    told = cli("route", "diff", "--with", "new/cooking", "more.jsonl").out
    assert "2 of 6 known requests would move" in told


def test_a_new_version_that_changes_nothing_takes_nothing(cli, here):
    done = cli("route", "diff", "--with", "adapters/medical")
    assert done.out == "medical would take none of 3 known requests\n"


MANY = """
from router import hookimpl
from router.routing import Classifier, Scores

class Many(Classifier):
    name = "many"
    scales = True
    known = {}

    def fit(self, adapters):
        self.known = {a.name: {w for t in a.examples for w in t.split()} for a in adapters}

    def classify_batch(self, requests):
        return [self.one(set(r.text.split())) for r in requests]

    def one(self, said):
        found = {n: len(said & words) / len(said) for n, words in self.known.items() if said & words}
        return Scores(found) if found else None

@hookimpl
def register_classifiers(register):
    register(Many())
"""


@pytest.mark.slow
def test_diff_beside_a_calibration_tries_the_newcomers_own_examples(cli, here):
    assert cli("route", "calibrate", "requests.jsonl", "--ood", "strange.jsonl").code == 0
    (here / "plugins" / "many.py").write_text(MANY)
    (here / "new" / "cooking").mkdir(parents=True)
    examples = '["boil rice longer", "boil the eggs longer", "boil rice in milk", "knead"]'
    text = manifest("cooking").replace('["a known recipe"]', examples)
    (here / "new" / "cooking" / "adapter.toml").write_text(text)
    write(here / "more.jsonl", [{"text": "fever again", "label": "medical"}, {"text": "boil milk"}])
    done = cli("route", "diff", "--with", "new/cooking", "more.jsonl", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["own"] == {"tried": 4, "routed": 3, "elsewhere": 0}
    assert {m["text"] for m in found["moved"] if m["to"] == "cooking"} >= {"boil milk", "knead"}
    assert not [m for m in found["moved"] if m["from"]]
    told = cli("route", "diff", "--with", "new/cooking", "more.jsonl").out
    assert "of 4 examples of cooking, each tried as though it were not one, 3 would come to it" in told
