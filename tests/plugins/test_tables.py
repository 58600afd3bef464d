"""Settings of plugins, and old names of them: a plugin's own, and those that were settings of the server."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from router.cli.settings import load_settings
from router.errors import ConfigError
from router.plugins import PluginHost
from router.plugins.tables import MOVED, old_names
from tests.hooks import Write, check_of, loaded, status_of, write

__all__ = ["write"]

SETTINGS = """
from pydantic import BaseModel

class Table(BaseModel):
    path: str = "log"
    most: int = 3
    names: list[str] = []

@hookimpl
def register_settings(register):
    register(Table)

@hookimpl
def register_checks(register, settings):
    register(lambda: f"{settings.path} {settings.most} {settings.names}")
"""


def test_settings_come_from_flag_environment_file_and_default(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("my_log.py", SETTINGS)
    assert check_of(loaded(), "my_log") == "log 3 []"
    (tmp_path / "lora-router.toml").write_text("max_running = 8\n[my-log]\nmost = 4\npath = 'file'\n")
    assert check_of(loaded(), "my_log") == "file 4 []"
    monkeypatch.setenv("LORA_ROUTER_MY_LOG__MOST", "5")
    monkeypatch.setenv("LORA_ROUTER_MY_LOG__NAMES", "a, b")
    assert check_of(loaded(), "my_log") == "file 5 ['a', 'b']"
    assert check_of(loaded(**{"my-log.most": "6"}), "my_log") == "file 6 ['a', 'b']"


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[log]\nmots = 1", "unknown setting log.mots (from lora-router.toml); did you mean 'most'?"),
        ("[log]\nmost = 'many'", "log.most (from lora-router.toml): input should be a valid integer"),
    ],
)
def test_wrong_settings_cost_their_plugin_alone(write: Write, tmp_path: Path, toml: str, said: str) -> None:
    write("log.py", SETTINGS)
    write("other.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text(toml)
    host = loaded()
    host.check_tables()
    assert said in status_of(host, "log").error
    assert [flaw for flaw in host.flaws if said in flaw]
    assert status_of(host, "other").error == ""


def test_a_table_of_no_plugin_is_refused_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("remote.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text("[remtoe]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"\[remtoe\] .* did you mean \[remote\]\?"):
        loaded().check_tables()
    (tmp_path / "lora-router.toml").write_text("[plugins.remote]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"settings of the plugin NAME are in \[NAME\]"):
        load_settings()


# -- old names

RENAMED = """
from typing import Annotated
from pydantic import BaseModel
from router import Formerly

class Table(BaseModel):
    path: Annotated[str, Formerly("file", "log_file")] = "log"

@hookimpl
def register_settings(register):
    register(Table)
"""


def settings_of(host: PluginHost, name: str) -> Any:
    """The settings of a plugin that is loaded."""
    return next(loaded.settings for loaded, plugin in host.running().items() if plugin.name == name)


def toml(folder: Path, text: str) -> None:
    (folder / "lora-router.toml").write_text(text)


def test_an_old_name_works_wherever_the_new_one_does(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("notes.py", RENAMED)
    toml(tmp_path, "[notes]\nlog_file = 'of the file'\n")
    assert settings_of(loaded(), "notes").path == "of the file"
    monkeypatch.setenv("LORA_ROUTER_NOTES__PATH", "of the environment")
    assert settings_of(loaded(), "notes").path == "of the environment"
    assert settings_of(loaded(**{"notes.file": "of the flag"}), "notes").path == "of the flag"


def test_two_names_that_disagree_end_the_start_with_both(write: Write, tmp_path: Path) -> None:
    write("notes.py", RENAMED)
    toml(tmp_path, "[notes]\nfile = 'a'\npath = 'a'\n")
    loaded().check_tables()
    toml(tmp_path, "[notes]\nfile = 'a'\npath = 'b'\n")
    with pytest.raises(ConfigError, match=r"notes\.file and notes\.path \(from lora-router\.toml\)"):
        loaded().check_tables()


def test_an_old_name_in_a_file_is_told_once_at_the_start(
    write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write("notes.py", RENAMED)
    toml(tmp_path, "[notes]\nfile = 'a'\n")
    host = loaded()
    with caplog.at_level(logging.WARNING):
        host.check_tables()
    told = "lora-router.toml: notes.file is an old name of notes.path"
    assert [told in line for line in caplog.messages] == [True]
    assert told in status_of(host, "notes").warnings[0]


# -- settings that were the server's


FLAT: list[tuple[str, str, str, Any, Any]] = [  # name, in the environment, as the flag gives it; field, value
    ("console", "off", "enabled", False, False),
    ("kserve", "yes", "enabled", True, True),
    ("metrics_compat", "vllm", "metrics", "vllm", "vllm"),
    ("mirror_cache_mb", "9", "cache_mb", 9, 9),
    ("mirror_seconds", "0.5", "seconds", 0.5, 0.5),
    ("mirror_wait_seconds", "0.5", "wait_seconds", 0.5, 0.5),
    ("otlp_endpoint", "env", "endpoint", "env", "env"),
]


def test_each_name_that_moved_is_an_old_name_of_a_field() -> None:
    host = PluginHost([], built_in=True)
    host.refresh()
    found = {
        old: plugin.name
        for loaded, plugin in host.running().items()
        for field in getattr(type(loaded.settings), "model_fields", {}).values()
        for old in old_names(field)
    }
    assert found == MOVED
    assert {row[0] for row in FLAT} == set(MOVED)


@pytest.mark.parametrize(("name", "text", "field", "flag", "value"), FLAT)
def test_flat_names_are_read_from_flag_environment_and_file(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    field: str,
    flag: Any,
    value: Any,
) -> None:
    write("none.txt", "")
    assert getattr(settings_of(loaded(**{name: flag}), MOVED[name]), field) == value
    toml(tmp_path, f"{name} = {json.dumps(flag)}\n")
    assert getattr(settings_of(loaded(), MOVED[name]), field) == value
    toml(tmp_path, "")
    monkeypatch.setenv(f"LORA_ROUTER_{name.upper()}", text)
    assert getattr(settings_of(loaded(), MOVED[name]), field) == value


def test_the_stronger_place_wins_whatever_the_name(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("none.txt", "")
    toml(tmp_path, "[otel]\nendpoint = 'http://file:1'\n")
    monkeypatch.setenv("LORA_ROUTER_OTLP_ENDPOINT", "http://environment:1")
    assert settings_of(loaded(), "otel").endpoint == "http://environment:1"
    monkeypatch.setenv("LORA_ROUTER_OTEL__ENDPOINT", "http://other:1")
    with pytest.raises(ConfigError, match="LORA_ROUTER_OTLP_ENDPOINT and LORA_ROUTER_OTEL__ENDPOINT"):
        loaded().check_tables()


def test_a_flat_name_of_a_plugin_that_is_gone_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("none.txt", "")
    monkeypatch.setattr("router.plugins.host.built_in_modules", dict)
    with pytest.raises(
        ConfigError, match=r"otlp_endpoint \(from flag\) .* built-in plugin otel, .* not there"
    ):
        loaded(otlp_endpoint="env").check_tables()


def test_a_misspelt_flat_name_is_refused_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("none.txt", "")
    toml(tmp_path, "otlp_endpiont = 'env'\n")
    with pytest.raises(ConfigError, match="did you mean 'otlp_endpoint'"):
        load_settings()
