"""Installed plugins, through distribution folders on the path: nothing is imported that was not named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from router.plugins import PluginHost
from router.plugins.host import PluginStatus

Install = Callable[[str, Mapping[str, str]], Path]


@pytest.fixture
def install(tmp_path: Path, shout: str, monkeypatch: pytest.MonkeyPatch) -> Install:
    """`install(package, {name: module})`: each module is the documentation's plugin and leaves a mark."""

    def install(package: str, entries: Mapping[str, str]) -> Path:
        site = tmp_path / package
        info = site / f"{package}-1.4.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.4\n")
        lines = "".join(f"{name} = {module}\n" for name, module in entries.items())
        (info / "entry_points.txt").write_text(f"[lora_router]\n{lines}")
        for module in entries.values():
            mark = f"import pathlib\npathlib.Path({str(site / module)!r}).touch()\n"
            if not module.startswith("no_"):
                (site / f"{module}.py").write_text(mark + shout)
        monkeypatch.syspath_prepend(site)
        return site

    return install


def loaded(load_plugins: str | None = None, installed_plugins: str = "") -> PluginHost:
    host = PluginHost([], load_plugins, installed_plugins)
    host.refresh()
    return host


def names(host: PluginHost) -> list[str]:
    return [r.name for r in host.registrations()]


def told(host: PluginHost) -> dict[str, PluginStatus]:
    return {status.name: status for status in host.status()}


@pytest.mark.parametrize("load_plugins", [None, "", "shout", "shouting:shout"])
def test_what_nobody_named_is_not_even_imported(install: Install, load_plugins: str | None) -> None:
    """A name in `load_plugins` means a file: else a package could take the place of `keywords`."""
    site = install("shouting", {"shout": "plugin_unnamed"})
    host = loaded(load_plugins)
    assert names(host) == []
    assert not (site / "plugin_unnamed").exists()
    found = host.status()[0]
    assert (found.name, found.source, found.package) == ("shout", "entry-point", "shouting")
    assert (found.enabled, found.error) == (False, "")


def test_one_that_is_named_is_loaded_with_its_version(install: Install) -> None:
    site = install("shouting", {"shout": "plugin_named", "other": "plugin_other", "gone": "no_such_module"})
    host = loaded("", " shout , gone")
    assert names(host) == ["shout"]
    assert not (site / "plugin_other").exists()
    found = told(host)
    assert (found["shout"].version, found["shout"].path) == ("1.4", "plugin_named")
    assert "ModuleNotFoundError" in found["gone"].error
    assert not found["other"].enabled


@pytest.mark.parametrize("said", ["shouting_aloud:shout", "Shouting-Aloud:shout", "shouting.aloud : shout"])
def test_a_package_is_named_as_registries_compare_names(install: Install, said: str) -> None:
    install("shouting_aloud", {"shout": "plugin_of_package"})
    assert names(loaded(installed_plugins=said)) == ["shout"]


def test_of_two_packages_with_one_name_neither_is_loaded_until_one_is_chosen(install: Install) -> None:
    good, bad = install("good", {"shout": "plugin_good"}), install("bad", {"shout": "plugin_bad"})
    host = loaded(installed_plugins="shout")
    assert names(host) == []
    assert not (good / "plugin_good").exists()
    assert not (bad / "plugin_bad").exists()
    errors = [status.error for status in host.status()]
    assert errors == ["several packages have it, so none is loaded: name one of bad:shout, good:shout"] * 2
    host = loaded(installed_plugins="good:shout")
    assert names(host) == ["shout"]
    assert not (bad / "plugin_bad").exists()
    assert [(s.package, s.enabled, s.error) for s in host.status()] == [
        ("bad", False, ""),
        ("good", True, ""),
    ]


def test_a_name_that_no_package_has_is_told(install: Install) -> None:
    install("shouting", {"shout": "plugin_there"})
    host = loaded(installed_plugins="shuot,else:shout")
    absent = [s for s in host.status() if s.source == "installed"]
    assert [(s.name, s.error, s.enabled) for s in absent] == [
        ("else:shout", "no installed package has it", False),
        ("shuot", "no installed package has it", False),
    ]


def test_an_optional_classifier_is_on_where_its_plugin_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = install("shouting", {"shout": "plugin_optional"})
    source = (site / "plugin_optional.py").read_text()
    (site / "plugin_optional.py").write_text(source.replace("timeout_ms=20", "timeout_ms=20, optional=True"))
    assert names(loaded(installed_plugins="shout")) == ["shout"]
