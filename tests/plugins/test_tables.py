"""Settings of plugins: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.cli.settings import load_settings, parse_sets
from router.errors import ConfigError
from router.plugins import PluginHost
from router.plugins.tables import read_tables
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


def test_settings_that_a_built_in_plugin_does_not_take_end_the_start() -> None:
    host = PluginHost([], tables=read_tables(Path(), {}, {"experiments.holdout": 2}), built_in=True)
    host.refresh()
    with pytest.raises(ConfigError, match=r"experiments.holdout \(from flag\): input should be less than 1"):
        host.check_tables()


def test_a_table_of_no_plugin_is_refused_with_the_nearest(write: Write, tmp_path: Path) -> None:
    write("remote.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text("[remtoe]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"\[remtoe\] .* did you mean \[remote\]\?"):
        loaded().check_tables()
    (tmp_path / "lora-router.toml").write_text("[plugins.remote]\nmost = 1\n")
    with pytest.raises(ConfigError, match=r"settings of the plugin NAME are in \[NAME\]"):
        load_settings()


def test_two_spellings_of_one_table_in_a_file_cost_the_plugin(write: Write, tmp_path: Path) -> None:
    write("my_log.py", SETTINGS)
    (tmp_path / "lora-router.toml").write_text("[my_log]\nmost = 1\n[my-log]\nmost = 2\n")
    assert "my_log.most and my-log.most (from lora-router.toml)" in status_of(loaded(), "my_log").error


def test_the_name_of_an_extension_alone_is_no_setting(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("none.txt", "")
    with pytest.raises(ConfigError, match="unknown setting otel "):
        load_settings(parse_sets(["otel=env"]))
    monkeypatch.setenv("LORA_ROUTER_OTEL", "env")
    with pytest.raises(ConfigError, match="LORA_ROUTER_OTEL sets nothing"):
        load_settings()
