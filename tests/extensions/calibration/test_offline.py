"""Requests routed without a server go where the server's router sends them."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.adapter_folders import read_profiles
from router.cli.command import CliError
from router.cli.settings import load_settings, rule_of
from router.extensions.calibration.offline import FixedCatalog, asking, choices_of, started_router
from router.extensions.calibration.rows import DataRow, RoutedRow
from router.plugins import PluginHost
from router.types import AdapterProfile
from tests.commands import own_folder

__all__ = ["own_folder"]

ROOT = Path(__file__).parents[3]
TWO = '''
from router import hookimpl
from router.routing import Classifier, Scores

class Words(Classifier):
    """Sure by the share of its adapter's words."""

    def __init__(self, name, words):
        self.name, self.words = name, words

    def classify_batch(self, requests):
        return [self.one(r.text.lower().split()) for r in requests]

    def one(self, said):
        scores = {name: sum(w in words for w in said) / len(said) for name, words in self.words.items()}
        return Scores(scores) if any(scores.values()) else None

@hookimpl
def register_classifiers(register):
    register(Words("first", {"legal": "tort lease", "qa": "who why"}), priority=1)
    register(Words("second", {"medical": "gout fever lease", "legal": "tort"}), priority=2)
'''
BROKEN = TWO.replace(
    "    def classify_batch", "    def fit(self, adapters): raise ValueError('no')\n\n    def classify_batch"
)
PROFILES = (
    AdapterProfile("legal", "1", domain="legal"),
    AdapterProfile("medical", "1", domain="medical"),
    AdapterProfile("qa", "1", task="question-answering", needs_passage=True),
)
TEXTS = (
    "tort",
    "tort lease gout fever",
    "lease and gout and fever and a tort",
    "who pays the lease of a house?",
    "Passage: the lease of the old house ends when the gout does, and nobody knows why.\n\nwho pays why",
    "nothing of all that",
    "Say in one word whose tort it is. Answer as JSON only.",
)


async def test_the_router_says_the_same_at_every_threshold(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    rule = rule_of(load_settings({}).model_copy(update={"calibration": ""}))
    thresholds = [n / 40 for n in range(2, 41)]
    goes: set[str] = set()
    async with started_router(FixedCatalog(PROFILES), PluginHost([tmp_path]), rule) as router:
        for text in TEXTS:
            choices, lost = await choices_of(router, text)
            assert not lost
            one = RoutedRow(DataRow(text, ""), choices)
            for threshold in thresholds:
                decision = await router.route(asking(text), threshold)
                assert one.at(threshold).adapter == (decision.adapter.name if decision.adapter else "")
                goes.add(one.at(threshold).adapter)
    assert goes == {"", "legal", "medical", "qa"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "no classifier can be asked here"),
        (
            BROKEN,
            "classifier first is not ready: ValueError .* leave it out with LORA_ROUTER_LOAD_PLUGINS",
        ),
    ],
)
async def test_without_all_classifiers_nothing_is_measured(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "two.py").write_text(source)
    rule = rule_of(load_settings({}).model_copy(update={"calibration": ""}))
    with pytest.raises(CliError, match=message):
        async with started_router(FixedCatalog(PROFILES), PluginHost([tmp_path]), rule):
            pass


@pytest.mark.slow
async def test_the_built_in_classifier_reads_with_the_encoder() -> None:
    profiles = read_profiles([ROOT / "adapters"])
    rule = rule_of(load_settings({}).model_copy(update={"calibration": "", "multilingual": "off"}))
    host = PluginHost([ROOT / "plugins"], "examples")
    asked = {
        "Which antibiotic is given for strep throat?": "medical",
        "Can my landlord keep the deposit after I moved out?": "legal",
        "Translate into French: good morning, my friends": "translation",
    }
    async with started_router(FixedCatalog(profiles), host, rule) as router:
        rows = [RoutedRow(DataRow(t, name), (await choices_of(router, t))[0]) for t, name in asked.items()]
    assert [one.forced.adapter for one in rows] == list(asked.values())
    assert {one.forced.classifier for one in rows} == {"examples"}
    assert all(one.at(1.0).adapter == "" for one in rows)
