"""`route corrections list|clear`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from router.cli.route import store_here
from router.corrections.store import Correction, CorrectionStore

ONE = Correction(1_800_000_000, "ab" * 16, "legal", "medical", "classified", 0.9, "Who owns this?", "acme")


@pytest.fixture
def store(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> CorrectionStore:
    """Of a server over ./adapters."""
    monkeypatch.setenv("XDG_STATE_HOME", str(own_folder / "state"))
    (own_folder / "adapters").mkdir()
    return store_here()


def test_list_shows_who_answered_and_who_should_have(cli, store):
    assert "serve --set corrections.keep=texts" in cli("route", "corrections", "list").out
    store.append(ONE)
    store.append(
        replace(ONE, response_id="cd" * 16, tenant="", label="", chosen=None, text="\x1b[31mred\n" * 20)
    )
    done = cli("route", "corrections", "list")
    assert done.code == 0, done.err
    assert "2027-01-15 08:00:00" in done.out
    assert "\x1b" not in done.out
    assert done.out.rstrip().endswith("2 of 2")
    _, mine = json.loads(cli("route", "corrections", "list", "--json").out)
    assert (mine["label"], mine["chosen"], mine["text"]) == ("legal", "medical", "Who owns this?")


def test_clear_takes_away_what_is_said_and_no_more(cli, store):
    for number, tenant in enumerate(("", "acme", "bravo")):
        store.append(replace(ONE, time=ONE.time + number * 86_400, tenant=tenant))
    assert cli("route", "corrections", "clear", "--tenant", "bravo").out == "1 taken away\n"
    assert cli("route", "corrections", "clear", "--before", "2027-01-16").out == "1 taken away\n"
    assert [one.tenant for one in store.read().corrections] == ["acme"]
    assert cli("route", "corrections", "clear", "--all").out == "1 taken away\n"
    assert store.read().corrections == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clear"], "say which: --tenant ID, --before TIME or both; or --all"),
        (["clear", "--all", "--tenant", "acme"], "say which"),
        (["clear", "--before", "yesterday"], "--before yesterday: must be a time such as 2027-01-31"),
        (["clear", "--tenant", "../acme"], "--tenant: no tenant is called '../acme'"),
        (["clear", "--tenant", "Acme"], "--tenant: no tenant is called 'Acme'"),
    ],
)
def test_bad_input_is_one_line(cli, store, arguments, message):
    done = cli("route", "corrections", *arguments)
    assert (done.code, len(done.err.splitlines())) == (2, 1)
    assert message in done.err


def test_a_setting_that_is_none_of_the_three(cli, own_folder):
    done = cli("serve", "--set", "corrections=everything")
    assert (done.code, "corrections (from flag)" in done.err) == (2, True)
