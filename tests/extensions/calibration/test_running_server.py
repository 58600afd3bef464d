"""`route calibrate` and `route learn` beside a server, which takes what they write."""

import asyncio
import json
from pathlib import Path

import pytest

from router.extensions.calibration.commands.calibrate import calibrate
from router.extensions.calibration.commands.learn import learn
from tests.cli.test_compose import client, folders, running
from tests.cli.tiny import write_adapter
from tests.commands import impatient, own_folder
from tests.server.helpers import until

__all__ = ["client", "folders", "impatient", "own_folder", "running"]

pytestmark = pytest.mark.slow

WORDS = """
from router import hookimpl
from router.routing import Classifier, Scores

class Words(Classifier):
    name = "words"

    def fit(self, adapters):
        self.known = {a.name: set(" ".join(a.examples).split()) for a in adapters}

    def classify_batch(self, requests):
        return [self.one(set(r.text.split())) for r in requests]

    def one(self, words):
        scores = {name: 0.95 * len(words & known) / len(words) for name, known in self.known.items()}
        return Scores(scores) if any(scores.values()) else None

@hookimpl
def register_classifiers(register):
    register(Words())
"""


def _calibrate_and_learn(folders: Path, step: str) -> None:
    """The commands of an operator, beside the running server; folders that are named stand alone."""
    own = {"adapters_dir": [Path("adapters")], "plugins_dir": [Path("plugins")]}
    if step == "calibrate":
        rows = [(f"gout g{n}", "medical") for n in range(100)] + [
            (f"torts t{n}", "legal") for n in range(100)
        ]
        path = folders / "rows.jsonl"
        path.write_text("".join(json.dumps({"text": t, "label": a}) + "\n" for t, a in rows))
        calibrate([path], **own)
        path.unlink()
    else:
        learn(hold_back=0, write=True, **own)


@pytest.mark.parametrize("running", [{"corrections": "texts", "gate": "replacements"}], indirect=True)
async def test_corrections_change_what_a_running_server_does(running, client, folders):
    (folders / "plugins" / "shout.py").unlink()
    (folders / "plugins" / "words.py").write_text(WORDS)
    for name, word in (("medical", "gout"), ("legal", "torts")):
        text = f'[adapter]\nname = "{name}"\nversion = "1.2.0"\n[routing]\nexamples = ["{word}"]\n'
        if name == "medical":
            (folders / "adapters" / name / "adapter.toml").write_text(text)
        else:
            write_adapter(folders / "adapters" / name, manifest=text)
    await asyncio.to_thread(_calibrate_and_learn, folders, "calibrate")
    await until(lambda: running.router.rule.status == "fitted", 30)
    for n in range(8):
        answer = await client.generate(f"leaky roof r{n} s{n} t{n} u{n}", max_tokens=2)
        assert answer.decision.adapter is None
        await client.record_correction(answer.response_id, "legal")
    before = running.router.rule.now.calibration
    await asyncio.to_thread(_calibrate_and_learn, folders, "learn")
    await until(lambda: running.router.rule.now.calibration != before, 60)
    await until(lambda: running.router.rule.now.newcomers == frozenset(), 60)
    decision = await client.route("leaky roof")
    assert (decision.adapter and decision.adapter.name, decision.calibration) == ("legal", "fitted")
    assert str((await client.route("gout g1")).adapter) == "medical@1.2.0"
    assert running.app.health.degraded == []
