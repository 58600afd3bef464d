"""Everything but the engine is the real thing: registry, plugins, routing, server."""

import asyncio
import dataclasses
import gc
import shlex
from pathlib import Path

import pytest

from router.built_in import built_in_folders
from router.cli.compose import Composition, keep
from router.cli.summary import lines_to_paste, print_summary, question_of
from router.client import AsyncClient
from router.config import Settings
from router.engine.fake import FakeEngine
from router.feedback.store import FeedbackStore
from router.routing.calibration import Calibration, write_calibration
from router.types import AdapterProfile, LostVote, VoteError
from tests.cli.tiny import MODULES, write_adapter
from tests.server.helpers import until
from tests.settings import settings_of

pytestmark = pytest.mark.slow

CALIBRATION = Calibration(
    created="2026-12-02T10:00:00Z",
    threshold=0.9,
    target=0.05,
    strange_target=0.05,
    delta=0.05,
    adapters=("medical",),
)

MANIFEST = """
[adapter]
name = "medical"
version = "1.2.0"
domain = "medicine"
[routing]
keywords = ["icd", "diagnosis", "chapter"]
"""
SHOUT = """
from router import hookimpl
from router.routing import Classifier, Scores

class Shout(Classifier):
    name = "shout"
    def classify_batch(self, requests):
        return [Scores({"medical": 1.0}) if r.text.isupper() else None for r in requests]

@hookimpl
def register_classifiers(register):
    register(Shout())
"""

READER = """
from router import hookimpl
from router.routing import Classifier, Scores

class Reader(Classifier):
    name = "reader"
    def bind(self, base):
        self.base = base
    def fit(self, adapters):
        self.known = self.base.hidden(["which chapter has gout"], background=True)[0]
    def classify_batch(self, requests):
        return [Scores({"medical": float(min(1, row @ self.known))}) for row in self._rows(requests)]
    def _rows(self, requests):
        return self.base.hidden([r.text for r in requests])

@hookimpl
def register_classifiers(register):
    register(Reader(), timeout_ms=5000)
"""


@pytest.fixture
def folders(own_folder, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    write_adapter(own_folder / "adapters" / "medical", manifest=MANIFEST)
    write_adapter(own_folder / "adapters" / "idle", b=0.0)
    (own_folder / "plugins").mkdir()
    (own_folder / "plugins" / "shout.py").write_text(SHOUT)
    (own_folder / "adapters.lock").write_text("# none\n")
    return own_folder


@pytest.fixture
async def running(folders, request, monkeypatch, impatient):
    """A composition that is serving; settings may be given as the fixture's parameter."""
    monkeypatch.setattr("router.routing.in_force.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("router.reread.RETRY_SECONDS", 0.2)
    engine = FakeEngine()
    engine._info = dataclasses.replace(engine._info, sites=MODULES, vocab_size=32)
    settings = settings_of(
        listen="127.0.0.1:0",
        metrics_listen="127.0.0.1:0",
        adapters_dir=(Path("adapters"),),
        plugins_dir=(Path("plugins"),),
        drain_seconds=2,
        lame_duck_seconds=0.05,
        **{"gate": "off", **getattr(request, "param", {})},  # no adapter here has a report
    )
    composition = Composition(settings, engine)
    ready = asyncio.Event()
    task = asyncio.create_task(composition.run(lambda app: ready.set()))
    await asyncio.wait({task, asyncio.ensure_future(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    yield composition
    composition.app.request_stop()
    await task


@pytest.fixture
async def client(running):
    async with AsyncClient(running.app.address, timeout=10) as made:
        yield made


async def test_a_dropped_in_plugin_and_adapter_answer(client):
    answer = await client.generate("WHICH CHAPTER?", max_tokens=8)
    assert str(answer.decision.adapter) == "medical@1.2.0"
    assert answer.decision.classifier == "shout"
    assert (await client.generate("hello", max_tokens=8)).decision.adapter is None


async def test_a_classifier_asks_the_base_that_serves(client, folders):
    (folders / "plugins" / "reader.py").write_text(READER)
    for _ in range(200):
        if (await client.route("which chapter has gout", explain=True)).classifier == "reader":
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the classifier that reads the base was not heard within 10 s")
    decision = await client.route("quite another thing", explain=True)
    assert decision.adapter is None
    (vote,) = [vote for vote in decision.votes if vote.classifier == "reader"]
    assert 0 <= vote.scores["medical"] < 0.5


BROKEN = """
from router import hookimpl
from router.routing import Classifier

class Broken(Classifier):
    name = "broken"
    def fit(self, adapters):
        raise ValueError("no encoder")
    def classify_batch(self, requests):
        return [None for _ in requests]

@hookimpl
def register_classifiers(register):
    register(Broken(), priority=1)
"""


async def test_a_classifier_that_is_not_ready_degrades_the_server_and_its_lost_votes_are_told(
    running, client, folders
):
    assert running.app.health.degraded == []
    (folders / "plugins" / "broken.py").write_text(BROKEN)
    for _ in range(200):
        decision = await client.route("WHICH CHAPTER?")
        if decision.votes_lost:
            break
        await asyncio.sleep(0.05)
    answer = await client.generate("WHICH CHAPTER?", max_tokens=2)
    assert answer.decision.votes_lost == (LostVote("broken", VoteError.NOT_READY),)
    assert str(answer.decision.adapter) == "medical@1.2.0"
    for _ in range(200):
        if "no encoder" in "".join(running.app.health.degraded):
            break
        await asyncio.sleep(0.05)
    (reason,) = running.app.health.degraded
    assert reason.startswith("classifier broken is not ready: ValueError")
    assert running.app.health.ready


async def test_a_bad_folder_is_quarantined_beside_it(client):
    states = {a.ref.name: (a.state.value, a.error) for a in await client.adapters.list()}
    assert states["medical"] == ("ready", "")
    assert states["idle"][0] == "quarantined"


@pytest.mark.parametrize("running", [{"adapters_lock": "adapters.lock"}], indirect=True)
async def test_only_what_is_listed_is_served_where_that_is_asked_for(running, client, capsys):
    for _ in range(400):  # a folder that may yet become good gets some time
        if found := [a for a in await client.adapters.list() if a.ref.name == "medical"]:
            break
        await asyncio.sleep(0.05)
    (medical,) = found
    assert medical.state.value == "quarantined"
    assert "is not in adapters.lock" in medical.error
    print_summary(running.app, running.plugins.status())
    assert "only those listed in adapters.lock are served" in capsys.readouterr().out


async def test_the_summary_says_what_runs(running, capsys):
    print_summary(running.app, running.plugins.status())
    out = capsys.readouterr().out
    assert "fake (Fake, context 2048)" in out
    assert "cpu, float32" in out
    assert "shout in plugins" in out
    assert "0 of 0 running" in out
    assert f"http://{running.app.metrics_address}/metrics" in out
    (medical,) = [line for line in out.splitlines() if line.startswith("medical")]
    assert medical.split()[:4] == ["medical", "1.2.0", "*", "ready"]
    assert f"lora-router ask --server {running.app.address}" in out
    assert out.rstrip().endswith("cp -r my-adapter adapters/")


def test_what_is_kept_is_not_looked_at_by_a_collection():
    kept = [[] for _ in range(1000)]
    before = gc.get_freeze_count()
    try:
        keep()
        assert gc.get_freeze_count() > before + len(kept)
        assert not any(one is kept[0] for one in gc.get_objects())
    finally:
        gc.unfreeze()


def test_garbage_is_collected_by_itself_again_when_the_base_is_there():
    gc.disable()
    try:
        keep()
        assert not gc.isenabled()
        keep(whole=True)
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_lines_to_paste_are_short_on_the_default_address():
    ask, curl, copy = lines_to_paste("127.0.0.1:50051", Settings(adapters_dir=(Path("adapters"),)), "Hello")
    assert ask == "lora-router ask Hello"
    assert curl.endswith("http://127.0.0.1:50051/router.v1.InferenceService/StreamGenerate")
    assert copy == "cp -r my-adapter adapters/"


def test_the_summary_suggests_a_question_that_an_adapter_knows():
    long = AdapterProfile("a", "1", examples=("x" * 200, "two\nlines"))
    known = AdapterProfile("b", "1", examples=("How many leave days are left?",))
    assert question_of([long, known]) == "How many leave days are left?"
    assert question_of([]) == "Hello"


def test_nobody_is_told_to_put_adapters_into_the_package():
    *_, copy = lines_to_paste("127.0.0.1:50051", Settings(adapters_dir=built_in_folders("adapters")), "Hello")
    assert copy.startswith("mkdir adapters && cp -r my-adapter adapters/ ")


def test_lines_to_paste_say_what_a_guarded_server_needs():
    settings = Settings(tls_cert="c.pem", tls_key="k.pem", clients="clients.toml")
    ask, curl, _ = lines_to_paste("10.0.0.1:50051", settings, "who's there?")
    assert ask.startswith(
        "LORA_ROUTER_TLS_CA=CA.pem LORA_ROUTER_TOKEN=TOKEN lora-router ask --server 10.0.0.1:50051 "
    )
    assert ask.endswith(shlex.quote("who's there?"))
    assert '--cacert CA.pem -H "authorization: Bearer TOKEN"' in curl
    assert " https://10.0.0.1:50051/" in curl


@pytest.mark.parametrize("running", [{"feedback.keep": "texts"}], indirect=True)
async def test_what_users_say_is_kept_in_the_state_folder(client, running):
    answer = await client.generate("hello", max_tokens=4)
    done = await client.feedback.record(answer.response_id, should_have_been="medical")
    assert done.kept == "texts"
    store = FeedbackStore.in_folder(running.app.state_dir)
    (kept,) = store.read("base")
    assert (kept.should_have_been, kept.messages) == ("medical", (("user", "hello"),))
    store.close()


async def test_a_server_lists_its_plugins(running, client, folders):
    (folders / "plugins" / "later.py").write_text("1 / 0\n")
    await running.plugins.pick_up()
    found = {plugin.name: plugin for plugin in await client.adapters.plugins()}
    assert found["vllm_names"].source == "built-in"
    assert "register_settings" in found["vllm_names"].hooks
    later, shout = found["later"], found["shout"]
    assert shout.hooks == ("register_classifiers",)
    assert (later.name, later.path, later.enabled) == ("later", "later.py", True)
    assert later.error == "ZeroDivisionError: division by zero (later.py:1)"
    assert (shout.name, shout.built_in, shout.error) == ("shout", False, "")
    (classifier,) = shout.classifiers
    assert (classifier.name, classifier.state) == ("shout", "ready")


async def test_a_calibration_copied_in_decides_within_seconds(running, client, folders):
    first = await client.route("WHICH CHAPTER?")
    assert (str(first.adapter), first.calibration) == ("medical@1.2.0", "")
    path = folders / "adapters" / "calibration.json"
    write_calibration(path, CALIBRATION)
    await until(lambda: running.router.rule.calibration == CALIBRATION, 20)
    second = await client.route("WHICH CHAPTER?")
    assert (str(second.adapter), second.threshold, second.calibration) == ("medical@1.2.0", 0.9, "calibrated")
    path.write_text("{")
    await until(lambda: "calibration.json is damaged" in "".join(running.app.health.degraded), 20)
    assert running.app.health.ready
    assert (await client.route("WHICH CHAPTER?")).threshold == 0.9
    write_calibration(path, CALIBRATION.model_copy(update={"threshold": 0.7}))
    await until(lambda: running.app.health.degraded == [], 20)
    assert (await client.route("WHICH CHAPTER?")).threshold == 0.7
