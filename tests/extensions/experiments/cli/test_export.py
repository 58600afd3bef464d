"""`experiments export`: files from a real store, and what cannot be written."""

import csv
import json
import sys

import pytest

from router.extensions.experiments.assignment import unit_hash
from router.extensions.experiments.model import (
    Experiment,
    ExperimentPhase,
    Exposure,
    Lifecycle,
    StoredOutcome,
)
from router.extensions.experiments.store.store import ExperimentStore
from tests.commands import cli, own_folder, remote
from tests.extensions.experiments.plans import plan

__all__ = ["cli", "own_folder", "remote"]


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A store with one experiment of three units, which the settings name."""
    made = f"sqlite:///{tmp_path / 'kept.db'}"
    store = ExperimentStore(made)
    spec = plan()
    kept = store.create(
        Experiment("trial", spec, Lifecycle.RUNNING, (ExperimentPhase(1, 1000.0, "e", "v", spec),))
    )
    for i, arm in enumerate(("old", "new", "old")):
        store.expose([Exposure(kept.name, 1, unit_hash(f"u{i}"), arm, 1000.0 + i, f"r{i}")])
        store.record([StoredOutcome(f"k{i}", "solved", float(i % 2), 1001.0 + i, f"r{i}")])
    store.close()
    monkeypatch.setenv("LORA_ROUTER_DATABASE", made)
    return made


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_units_of_the_last_phase(cli, url, tmp_path):
    done = cli("experiments", "export", "trial", "units", "units.csv")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("units.csv: 3 rows, ")
    assert {row["unit"] for row in rows(tmp_path / "units.csv")} == {unit_hash(f"u{i}") for i in range(3)}


def test_a_phase_of_a_named_store(cli, url, tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_ROUTER_DATABASE", "")
    arguments = ("experiments", "export", "experiments/trial", "outcomes", "o.csv", "--phase", "1")
    done = cli(*arguments, "--store", url, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out)
    assert (told["path"], told["rows"]) == ("o.csv", 3)
    assert cli(*arguments, "--store", url).code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("trial", "everything", "a.csv"), 2, "'everything' cannot be exported; known are"),
        (("trial", "units", "a.xls"), 2, "the name must end with .csv"),
        (("trial", "units", "a.csv", "--phase", "0"), 2, "--phase is the number of a phase, from 1, not 0"),
        (("trial", "units", "a.csv", "--phase", "7"), 1, "phase 7 is not there, there are: 1"),
        (("nobody", "units", "a.csv"), 1, "nobody"),
        (("trial", "units", "no/where.csv"), 1, "no/where.csv: No such file or directory"),
        (("trial", "units", "a.csv", "--store", "sqlite:////no/where.db"), 2, "/no/where.db"),
    ],
)
def test_what_cannot_be_exported_is_told(cli, url, tmp_path, arguments, code, told):
    done = cli("experiments", "export", *arguments)
    assert (done.code, done.out) == (code, "")
    assert told in done.err
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.slow
def test_a_file_that_is_there_stays(cli, url, tmp_path):
    (tmp_path / "units.csv").write_text("mine")
    done = cli("experiments", "export", "trial", "units", "units.csv")
    assert (done.code, "is there already" in done.err) == (1, True)
    assert (tmp_path / "units.csv").read_text() == "mine"


def test_without_a_store_it_says_where_to_look(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    done = cli("experiments", "export", "trial", "units", "a.csv")
    assert (done.code, "no server kept experiments here yet" in done.err) == (1, True)


def test_ctrl_c_leaves_nothing(cli, url, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("router.extensions.experiments.export._csv", interrupted)
    done = cli("experiments", "export", "trial", "units", "units.csv")
    assert (done.code, done.err) == (130, "lora-router: interrupted: nothing was written\n")
    assert not list(tmp_path.glob("*units*"))


def test_a_terminal_sees_how_far_it_is(cli, url, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = cli("experiments", "export", "trial", "units", "units.csv")
    assert (done.code, "rows\r" in done.err) == (0, True)
