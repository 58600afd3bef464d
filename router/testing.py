"""For authors of plugins: subclass a contract, write `make`, and pytest runs the whole of it.

class TestShout(ClassifierContract):
    def make(self):
        return classifier_of("plugins/shout.py")

For other plugins: `serving` runs a server with them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar
from unittest.mock import patch

from router.classifiers.contract import Classifier, Registrar
from router.plugins import doctor
from router.plugins.loader import LoadError, load_file
from router.plugins.tables import SettingPlace, SettingsTable, SettingValue

if TYPE_CHECKING:
    from router.client import AsyncClient
    from router.plugins import PluginHost
    from router.server.app import ServerApp

__all__ = ["ClassifierContract", "Served", "classifier_of", "serving"]


def classifier_of(plugin: Path | str, **settings: Any) -> Classifier:
    """A fresh instance of the classifier that a plugin, a file or folder, registers; `settings` are its own.

    Raises ValueError for a plugin that cannot be loaded, and unless it registers one classifier.
    """
    path = Path(plugin)
    try:
        given = [
            SettingValue(key, value, SettingPlace.FILE, key, "the test") for key, value in settings.items()
        ]
        loaded = load_file(path, SettingsTable(given))
    except LoadError as error:
        raise ValueError(f"{path}: {error}") from error
    if len(loaded.registrations) != 1:
        raise ValueError(f"{path} registers {len(loaded.registrations)} classifiers and should register one")
    return loaded.registrations[0].classifier


@dataclass(frozen=True, slots=True)
class Served:
    """A server that takes requests. `server` is what hooks get: it has `address` and `http_address`."""

    server: ServerApp
    client: AsyncClient
    plugins: PluginHost  # `status()`: each plugin, with its error and warnings


@asynccontextmanager
async def serving(plugins: Path | str = "plugins", **settings: Any) -> AsyncIterator[Served]:
    """A server in this process with the plugins of a folder, without a model, on ports that are free.

    It answers `[base]` and then the words of the prompt; `engine="NAME"` takes an engine of a plugin. It has
    no adapters but those of the setting `adapters_dir`, and its state is in a folder of its own. `settings`
    are those of lora-router.toml, NAME.KEY those of a plugin: `serving("plugins", **{"shout.loud": True})`.

    Needs the main thread. Raises ConfigError for wrong settings.
    """
    from router.cli.compose import Composition
    from router.cli.engines import engine_of
    from router.cli.plugins import host_of
    from router.cli.settings import load_settings
    from router.client import AsyncClient
    from router.engine.fake import FakeEngine

    with TemporaryDirectory() as state, patch.dict(os.environ, XDG_STATE_HOME=state):
        default = {
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "http_listen": "",
            "adapters_dir": (),
            "lame_duck_seconds": 0.0,
        }
        found = load_settings({**default, "plugins_dir": (Path(plugins),), **settings})
        host = host_of(found)
        host.refresh()
        host.check_tables()
        engine = engine_of(found, host)[0] if "engine" in settings else FakeEngine()
        composition, ready = Composition(found, engine, plugins=host), asyncio.Event()
        running = asyncio.create_task(composition.run(lambda app: ready.set()))
        try:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if running.done():
                running.result()
            async with AsyncClient(composition.app.address, timeout=10) as client:
                yield Served(composition.app, client, host)
        finally:
            composition.app.request_stop()
            await asyncio.wait({running})
        running.result()


class ClassifierContract:
    """What the server expects of every classifier. Needs nothing but pytest to collect it."""

    timeout_ms: ClassVar[int] = 50  # what the plugin gives to register()

    def make(self) -> Classifier:
        """A fresh classifier."""
        raise NotImplementedError("define make(self) and return a new instance of your classifier")

    def fitted(self) -> Classifier:
        """A classifier that was warmed up and has learned the sample adapters, on a stand-in for the base."""
        classifier = self.make()
        doctor.prepare(classifier)
        return classifier

    def test_it_can_be_registered(self) -> None:
        """Name, arity and kind of `classify_batch` are right."""
        Registrar("contract")(self.make(), timeout_ms=self.timeout_ms)

    def test_it_has_a_fingerprint(self) -> None:
        """Calibrations are bound to it, so it is the same for the same classifier."""
        one, two = self.make().fingerprint(), self.make().fingerprint()
        _expect_none([] if one and one == two else [f"fingerprints {one!r} and {two!r}"])

    def test_every_request_gets_one_valid_answer(self) -> None:
        """Scores or None, in batches of none, one and several."""
        _expect_none(doctor.valid(self.fitted()))

    def test_odd_texts_are_survived(self) -> None:
        """Empty, huge, control characters, other scripts."""
        _expect_none(doctor.odd_texts(self.fitted()))

    def test_a_batch_is_answered_like_single_requests(self) -> None:
        """Neighbours in a batch do not matter."""
        _expect_none(doctor.batch_equals_single(self.fitted()))

    def test_the_same_request_gets_the_same_answer(self) -> None:
        """Decisions can be repeated."""
        _expect_none(doctor.deterministic(self.fitted()))

    def test_adapters_come_and_go(self) -> None:
        """Fitting again, to fewer, to none, to one without examples."""
        _expect_none(doctor.refits(self.fitted()))

    def test_requests_are_answered_during_a_fit(self) -> None:
        """`fit` runs beside `classify_batch`."""
        _expect_none(doctor.answers_while_fitting(self.fitted()))

    def test_warm_calls_keep_the_timeout(self) -> None:
        """At least 90 of 100 do; a busy machine may delay some."""
        _expect_none(doctor.latency(self.fitted(), self.timeout_ms / 1000))


def _expect_none(problems: list[str]) -> None:
    if problems:
        raise AssertionError("\n".join(problems))
