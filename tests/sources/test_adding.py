"""Adapters from their sources into an adapters folder, and which versions it has."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from router.errors import AdapterRejected, AlreadyExists, ConfigError, DataLoss, ResourceExhausted
from router.registry.format.artifact import digest_of_folder
from router.registry.format.manifest import Manifest
from router.sources.adding import AdaptersFolder, AddOutcome, NameOverride, ref_of
from router.sources.staging import SourceRecord
from router.types import AdapterRef
from tests.cli.tiny import write_adapter
from tests.sources.conftest import MANIFEST, in_view
from tests.sources.fake_hub import COMMIT, REPO

WEIGHTS = "adapter_model.safetensors"


def test_an_adapter_comes_with_the_commit_that_it_is_of(hub, added, adapters, adapter_files):
    hub.files["README.md"] = b"---\nlicense: mit\n---\nhello"
    done = added()
    assert (str(done.ref), done.outcome) == ("some-lora@v1.0", AddOutcome.ADDED)
    folder = adapters / "some-lora" / "v1.0"
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name in adapter_files} == adapter_files
    origin = SourceRecord.read(folder)
    assert (origin.source, origin.pin) == (f"hub:{REPO}@v1.0", COMMIT)
    assert origin.digest == digest_of_folder(folder)
    assert done.origin.license == "mit"
    assert all(COMMIT in path for path in hub.paths() if "resolve" in path), (
        "files of the commit, not the tag"
    )
    assert list(adapters.glob(".*")) == []


def test_added_again_nothing_is_fetched(hub, added):
    first = added()
    hub.asked.clear()
    again = added(f"hub:{REPO}@{COMMIT}")
    assert (again.outcome, again.folder) == (AddOutcome.PRESENT, first.folder)
    assert [path for path in hub.paths() if "/api/" not in path] == []


def test_what_its_manifest_says_is_its_name(hub, added, adapters):
    hub.files["adapter.toml"] = MANIFEST
    assert str(added().ref) == "contracts@1.0.0"
    assert (adapters / "contracts" / "1.0.0" / WEIGHTS).is_file()
    with pytest.raises(ConfigError, match=r"its adapter.toml says 'contracts'"):
        added(name="other")


def test_a_name_is_given_where_none_is_said(hub, added, adapters):
    assert str(added(f"hub:{REPO}").ref) == "some-lora@0"
    assert str(added(f"hub:{REPO}", name="mine", version="2.1").ref) == "mine@2.1"
    with pytest.raises(ConfigError, match="is written like"):
        added(f"hub:{REPO}", name="other", version="beta")
    assert {path.split("/")[0] for path in in_view(adapters)} == {"mine", "some-lora"}


def test_other_contents_need_a_version_of_their_own_or_force(hub, added, adapters, tmp_path):
    added(f"hub:{REPO}")
    before = in_view(adapters)
    other = write_adapter(tmp_path / "other", b=0.25)
    with pytest.raises(AlreadyExists, match=f"from hub:{REPO}@main.*--version gives.*--force"):
        added(other, name="some-lora", version="0")
    assert in_view(adapters) == before
    assert str(added(other, name="some-lora", version="0.1").ref) == "some-lora@0.1"
    done = added(other, name="some-lora", version="0", force=True)
    assert (done.outcome, digest_of_folder(done.folder)) == (AddOutcome.REPLACED, digest_of_folder(other))
    assert list(adapters.glob(".*")) == []


def test_a_known_conflict_is_told_before_the_weights_come(hub, added, adapters, tmp_path):
    write_adapter(adapters / "some-lora" / "0", manifest='[adapter]\ndescription = "longer"\n')
    with pytest.raises(AlreadyExists):
        added(f"hub:{REPO}")
    assert not any(WEIGHTS in path for path in hub.paths())


def test_beside_a_folder_that_is_a_version_itself(hub, added, adapters):
    write_adapter(adapters / "contracts", manifest=MANIFEST.decode().replace("1.0.0", "0.9"))
    hub.files["adapter.toml"] = MANIFEST
    assert added().folder == adapters / "contracts-1.0.0"
    del hub.files["adapter.toml"]
    with pytest.raises(ConfigError, match="is a version itself"):
        added(name="contracts", version="2.0")


def test_only_the_digest_that_was_said(hub, added, adapters, tmp_path):
    right = digest_of_folder(write_adapter(tmp_path / "same"))
    with pytest.raises(DataLoss, match=f"its digest is sha256:{right}, --digest says sha256:{'0' * 64}"):
        added(digest="0" * 64)
    assert in_view(adapters) == []
    assert added(digest=right).origin.digest == right


def test_what_no_adapter_has_stays_there(hub, added, adapters):
    strays = (
        "train.py",
        "adapter_model.bin",
        "model-00001-of-2.safetensors",
        "checkpoint-10/adapter_config.json",
    )
    hub.files |= dict.fromkeys(strays, b"x" * 10)
    done = added()
    assert {left.name.rstrip("/") for left in done.left} == {name.split("/")[0] for name in strays}
    assert sorted(os.listdir(done.folder)) == ["adapter_config.json", WEIGHTS, "source.toml"]
    assert not any(stray in path for stray in strays for path in hub.paths())
    assert not any(stat.S_IMODE(p.stat().st_mode) & 0o111 for p in done.folder.iterdir())


def test_a_report_comes_only_if_it_is_asked_for(hub, added):
    hub.files["report.json"] = b"{}"
    done = added()
    assert not (done.folder / "report.json").exists()
    assert [left.name for left in done.left] == ["report.json"]
    assert added(report=True).outcome is AddOutcome.REPORTED
    assert (done.folder / "report.json").read_bytes() == b"{}"
    hub.asked.clear()
    assert added(report=True).outcome is AddOutcome.PRESENT
    assert len(hub.asked) == 1


def test_an_adapter_in_a_subfolder(hub, added):
    hub.files = {f"adapters/legal/{name}": data for name, data in hub.files.items()}
    with pytest.raises(AdapterRejected, match="--subfolder with one of 'adapters/legal'"):
        added()
    done = added(subfolder="adapters/legal")
    assert str(done.ref) == "legal@v1.0"
    assert added(subfolder="adapters/legal/").outcome is AddOutcome.PRESENT


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a\\b", "a\nb", "x/../../y", "C:/x", "", "n" * 2000]
)
def test_names_that_lead_elsewhere_refuse_all(hub, added, adapters, name):
    hub.files[name] = b"x"
    with pytest.raises(AdapterRejected, match="the source lists a file called"):
        added()
    assert in_view(adapters) == []


def test_what_is_too_large_is_not_begun(hub, added, adapters):
    with pytest.raises(
        ResourceExhausted, match="at most 500 are fetched; the setting host_memory_mb allows more"
    ):
        added(most_bytes=500)
    hub.lists["adapter_config.json"] = {"size": 2 << 20}
    with pytest.raises(AdapterRejected, match=r"adapter_config.json has 2097152 bytes"):
        added(most_bytes=1 << 30)
    hub.lists = {WEIGHTS: {"lfs": {"size": 1 << 45, "sha256": "ab" * 32, "pointerSize": 130}}}
    with pytest.raises(AdapterRejected, match=f"{WEIGHTS} has"):
        added(most_bytes=1 << 50)
    assert not any("resolve" in path for path in hub.paths())


def test_a_refused_adapter_leaves_nothing(hub, added, adapters, tmp_path):
    hub.files[WEIGHTS] = (write_adapter(tmp_path / "idle", b=0.0) / WEIGHTS).read_bytes()
    with pytest.raises(AdapterRejected, match="is refused") as refused:
        added()
    assert refused.value.metadata["codes"] == "no-effect"
    assert not adapters.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["adapter_model.bin", "adapter_config.json"], "pickle files are never loaded"),
        (["model.safetensors", "config.json"], "merged model"),
        (["adapter.gguf"], "GGUF"),
        (["README.md"], "not an adapter folder"),
    ],
)
def test_what_is_no_adapter_is_told_by_the_names_alone(hub, added, names, message):
    hub.files = dict.fromkeys(names, b"x")
    with pytest.raises(AdapterRejected, match=message):
        added()


def test_a_full_disk_leaves_nothing(added, adapters, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    source = write_adapter(tmp_path / "some-lora")
    with monkeypatch.context() as patched:
        patched.setattr("router.sources.source.LocalFolder.fetch", full)
        with pytest.raises(ResourceExhausted, match=r"the disk is full.*run the same command again"):
            added(source)
    assert not adapters.exists()
    assert added(source).outcome is AddOutcome.ADDED


def test_a_disk_without_room_is_told_before(hub, added, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr("router.sources.adding.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ResourceExhausted, match="and 10 are free: make room"):
        added()
    assert not any("resolve" in path for path in hub.paths())


def test_an_interrupted_one_leaves_nothing(added, adapters, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    source = write_adapter(tmp_path / "some-lora")
    monkeypatch.setattr("router.sources.source.LocalFolder.fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        added(source)
    assert not adapters.exists()


class Killed(BaseException):
    """The process is gone: nothing that it would still do is done."""


def killed_after(patched, steps):
    """From the step of that number on, whatever would change the disk ends the process."""
    left = [steps]

    def counted(real):
        def step(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return real(*arguments, **options)

        return step

    for owner, name in ((os, "write"), (os, "replace"), (os, "rename"), (Path, "write_text")):
        patched.setattr(owner, name, counted(getattr(owner, name)))
    patched.setattr("router.sources.staging.shutil.rmtree", counted(shutil.rmtree))
    return left


def test_whenever_it_is_killed_there_is_all_or_nothing_and_the_next_run_ends_well(
    hub, added, adapters, adapter_files, monkeypatch
):
    whole = [f"some-lora/v1.0/{name}" for name in sorted([*adapter_files, "source.toml"])]
    for steps in range(30):
        shutil.rmtree(adapters, ignore_errors=True)
        with monkeypatch.context() as patched:
            left = killed_after(patched, steps)
            with contextlib.suppress(Killed):
                added()
        assert in_view(adapters) in ([], whole)
        folder = added().folder
        assert {name: (folder / name).read_bytes() for name in adapter_files} == adapter_files
        if left[0] > 0:
            break
    assert steps > 6, "there is more to interrupt than that"
    assert left[0] > 0, "the last run was not interrupted"


def test_whenever_a_replacement_is_killed_nothing_is_mixed_and_the_next_run_ends_well(
    hub, added, adapters, tmp_path, monkeypatch
):
    old, new = write_adapter(tmp_path / "old"), write_adapter(tmp_path / "new", b=0.25)
    digests = {digest_of_folder(old), digest_of_folder(new)}
    for steps in range(40):
        shutil.rmtree(adapters, ignore_errors=True)
        added(old, name="x")
        with monkeypatch.context() as patched:
            left = killed_after(patched, steps)
            with contextlib.suppress(Killed):
                added(new, name="x", force=True)
        assert not in_view(adapters) or digest_of_folder(adapters / "x" / "0") in digests
        assert digest_of_folder(added(new, name="x", force=True).folder) == digest_of_folder(new)
        if left[0] > 0:
            break
    assert left[0] > 0


# -- adapters_folder


SOURCE = SimpleNamespace(name="Some LoRA", version="v1")


@pytest.mark.parametrize(
    ("says", "wanted", "ref"),
    [
        (None, NameOverride(), "some-lora@v1"),
        (None, NameOverride("mine", "2"), "mine@2"),
        (Manifest("own", "3"), NameOverride(), "own@3"),
        (Manifest("own", "3"), NameOverride("own", "3"), "own@3"),
        (Manifest("folder", "3"), NameOverride("mine"), "mine@3"),  # its name is the folder's: it says none
        (Manifest("own"), NameOverride(version="2"), "own@2"),
    ],
)
def test_the_manifest_says_it_then_the_user_then_the_source(says, wanted, ref):
    assert str(ref_of(says, "folder", SOURCE, wanted)) == ref


@pytest.mark.parametrize("wanted", [NameOverride("mine"), NameOverride(version="2")])
def test_a_manifest_is_not_contradicted(wanted):
    with pytest.raises(ConfigError, match="changing that changes its digest"):
        ref_of(Manifest("own", "3"), "folder", SOURCE, wanted)


def test_a_source_without_a_name_wants_one():
    with pytest.raises(ConfigError, match="say --name"):
        ref_of(None, "folder", SimpleNamespace(name="...", version=""), NameOverride())


def test_versions_stand_below_their_name(adapters):
    write_adapter(adapters / "a" / "1.0")
    adapters_folder = AdaptersFolder(adapters)
    assert adapters_folder.target(AdapterRef("a", "1.0"), None).present == adapters / "a" / "1.0"
    target = adapters_folder.target(AdapterRef("a", "1.1"), None)
    assert (target.folder, target.present) == (adapters / "a" / "1.1", None)


def test_beside_a_version_that_is_a_folder_itself(adapters):
    write_adapter(adapters / "a")
    adapters_folder, ref = AdaptersFolder(adapters), AdapterRef("a", "1.1")
    assert adapters_folder.target(ref, Manifest("a", "1.1")).folder == adapters / "a-1.1"
    with pytest.raises(ConfigError, match="is a version itself"):
        adapters_folder.target(ref, None)
    write_adapter(adapters / "a-1.1", manifest='[adapter]\nname = "other"\n')
    with pytest.raises(AlreadyExists, match=r"a-1.1 is there already, and is not a@1.1"):
        AdaptersFolder(adapters).target(ref, Manifest("a", "1.1"))


def test_a_version_that_no_folder_can_say(adapters):
    with pytest.raises(ConfigError, match="is written like"):
        AdaptersFolder(adapters).target(AdapterRef("a", "beta"), None)
    assert (
        AdaptersFolder(adapters).target(AdapterRef("a", "beta"), Manifest("a", "beta")).folder
        == adapters / "a" / "beta"
    )
