"""Each extension may be taken away: the command line and a server work without its folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from router import built_in
from router.cli.main import run
from tests.hooks import Write, got, serving, write

__all__ = ["write"]

MODULES = built_in.built_in_modules()
NAMES = [built_in.name_of(module) for module in MODULES]
EXTENSIONS = [name for name in NAMES if name != "experiments"]  # whose report the console draws


@pytest.fixture(params=EXTENSIONS)
def absent(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The extension that is not there."""
    name = str(request.param)
    folder = tmp_path / "extensions"
    folder.mkdir()
    for child in built_in.EXTENSIONS.iterdir():
        if child.stem != name:
            (folder / child.name).symlink_to(child)
    monkeypatch.setattr(built_in, "EXTENSIONS", folder)
    gone = f"router.extensions.{name}"
    for module in [m for m in sys.modules if m == gone or m.startswith(f"{gone}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, gone, None)  # whose import fails
    return name


async def test_the_rest_works(
    absent: str, write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("none.txt", "")
    run(["adapters", "--help"])
    shown = capsys.readouterr()
    assert (shown.err, "validate" in shown.out) == ("", True)
    assert ("  train " in shown.out) == (absent != "training")
    on = {} if absent == "kserve" else {"kserve.enabled": True}
    async with serving(http_listen="127.0.0.1:0", **on) as (served, client):
        assert (await client.generate("one two", max_tokens=2)).text
        for name, path in (("openai", "/v1/models"), ("ofrep", "/ofrep/v1/evaluate/flags")):
            status = (await got(served.server, path)).status_code
            assert (status == 404) == (name == absent)
        assert ("inference.GRPCInferenceService" in served.server.health.names) == (absent != "kserve")
        listed = {plugin.name: plugin for plugin in await client.adapters.plugins()}
        assert sorted(listed) == sorted(name for name in NAMES if name != absent)
        assert [plugin.error for plugin in listed.values() if plugin.error] == []
        assert served.server.health.degraded == []
