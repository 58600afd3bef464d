"""One folder brought here, with as little asked for as possible, and whole whenever the process is killed."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from pathlib import Path

import pytest

from router.errors import AdapterRejected
from router.registry.format import limits
from router.sources.fetching import Cache, taken
from router.sources.staging import StagingArea
from router.sources.store import Remote, RemoteFolder
from tests.sources.mirror.conftest import CONFIG, MANIFEST, WEIGHTS, as_put, here, other, turns


def test_ten_names_of_the_same_bytes_are_fetched_once(bucket, make, adapter):
    for number in range(10):
        bucket.put(f"a{number}", {**adapter, MANIFEST: f'[adapter]\nname = "a{number}"\n'.encode()})
        mirror = make()
        turns(mirror)
        mirror.close()
    once = sum(map(len, adapter.values())) - len(adapter[MANIFEST])
    assert bucket.fetched == once + 10 * len(b'[adapter]\nname = "a0"\n')
    assert len(here(mirror)) == 10 * len(adapter)


def test_many_names_of_the_same_weights_at_once_are_fetched_once(bucket, make, adapter):
    for number in range(10):
        bucket.put(f"a{number}", {**adapter, MANIFEST: f'[adapter]\nname = "a{number}"\n'.encode()})
    read = []
    bucket.before_read = read.append
    mirror = make()
    turns(mirror)
    assert len(here(mirror)) == 10 * len(adapter)
    assert len([path for path in read if path.endswith(WEIGHTS)]) == 1


def test_a_rollback_is_fetched_from_the_cache(bucket, make, adapter):
    mirror = make()
    for files in (adapter, other(adapter)):
        bucket.put("a", files)
        turns(mirror)
    assert here(mirror) == as_put(a=other(adapter))
    before = bucket.fetched
    bucket.put("a", adapter)
    turns(mirror)
    assert here(mirror) == as_put(a=adapter)
    assert bucket.fetched == before


def test_a_cache_is_held_to_its_limit(bucket, make, adapter, tmp_path):
    size = sum(map(len, adapter.values()))
    mirror = make(cache=Cache(tmp_path / "mirrors/small", size))
    for name in "abc":
        bucket.put(name, other(adapter, name.encode()))
        turns(mirror)
    kept = [path.stat().st_size for path in (tmp_path / "mirrors/small/sha256").glob("*/*")]
    assert 0 < sum(kept) <= size
    assert len(here(mirror)) == 3 * len(adapter)


def test_without_a_cache_all_is_fetched_again(bucket, make, adapter, tmp_path):
    mirror = make(cache=Cache(tmp_path / "mirrors/none", 0))
    bucket.put("a", adapter)
    turns(mirror)
    bucket.put("b", adapter)
    turns(mirror)
    assert here(mirror) == as_put(a=adapter, b=adapter)
    assert bucket.fetched == 2 * sum(map(len, adapter.values()))


def test_what_changes_while_it_is_read_is_taken_when_it_is_still(bucket, make, adapter, tmp_path, caplog):
    bucket.put("a", adapter)
    new = other(adapter)

    def replace(path):
        bucket.before_read = lambda path: None
        bucket.put("a", new)

    bucket.before_read = replace
    mirror = make()
    with caplog.at_level(logging.INFO):
        turns(mirror)
    assert here(mirror) == {}
    assert "changed while it was read" in caplog.text
    assert list((tmp_path / "mirrors/one/fetching").iterdir()) == [], "of two moments, and of no use"
    turns(mirror)
    assert here(mirror) == as_put(a=new)


def test_empty_files_and_none_that_nobody_wants(bucket, make, adapter):
    bucket.put("a", {**adapter, "README.md": b"", "train.py": b"x", "adapter_model.bin": b"x"})
    mirror = make()
    turns(mirror)
    assert here(mirror) == as_put(a={**adapter, "README.md": b""})


def files(**sizes: int) -> RemoteFolder:
    names = {"config": CONFIG, "weights": WEIGHTS}
    return RemoteFolder.of("a", [Remote(names[name], size, "") for name, size in sizes.items()])


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (files(config=limits.CONFIG_BYTES + 1, weights=1), "adapter_config.json has 1048577 bytes, at most"),
        (files(config=1, weights=1 << 31), "it has 2147483649 bytes, and host_memory_mb has room for"),
        (RemoteFolder.of("a", [Remote(WEIGHTS, 1, "", link=True)]), "a link, and none is followed"),
    ],
)
def test_what_is_refused(folder, message):
    with pytest.raises(AdapterRejected, match=message):
        list(taken(folder, 1 << 30))


@pytest.mark.parametrize(
    "readme", [Remote("README.md", limits.MIB + 1, ""), Remote("README.md", 1, "", link=True)]
)
def test_a_page_that_is_too_long_or_elsewhere_is_left(readme):
    folder = RemoteFolder.of("a", [*files(config=1, weights=1).files.values(), readme])
    assert [file.name for file in taken(folder, 1 << 30)] == [CONFIG, WEIGHTS]


def test_other_sizes_than_announced_are_not_taken(bucket, make, adapter, monkeypatch):
    bucket.put("a", adapter)
    real = type(bucket.files).cat_file
    monkeypatch.setattr(
        type(bucket.files), "cat_file", lambda self, path, **part: real(self, path, **part)[:-1]
    )
    mirror = make()
    turns(mirror, 3)
    assert here(mirror) == {}


class Killed(BaseException):
    """As SIGKILL: nothing of the process runs after it."""


def killed_after(patched, steps: int) -> list[int]:
    """Whatever changes the disk or asks the store works so often, and never again."""
    left = [steps]

    def dying(real):
        def step(*arguments, **more):
            if left[0] <= 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **more)

        return step

    for owner, name in (
        (os, "replace"), (os, "write"), (Path, "rename"), (Path, "rmdir"), (Path, "unlink"), (Path, "mkdir"),
        (StagingArea, "publish"), (shutil, "rmtree"),
    ):  # fmt: skip
        patched.setattr(owner, name, dying(getattr(owner, name)))
    return left


@pytest.mark.parametrize("change", ["new", "replaced", "removed"])
def test_whenever_it_is_killed_each_folder_is_old_or_new_and_the_next_one_goes_on(
    bucket, make, adapter, tmp_path, change, monkeypatch
):
    monkeypatch.setattr("router.sources.mirror.FETCHERS", 1)
    monkeypatch.setattr("router.extensions.object_store.objects.BLOCK", 300)
    before = {"keep": adapter} if change == "new" else {"keep": adapter, "a": adapter}
    after = {"keep": adapter} if change == "removed" else {"keep": adapter, "a": other(adapter)}
    for steps in range(80):
        own = {"folder": f"m{steps}", "cache": Cache(tmp_path / f"c{steps}", 1 << 30)}
        with contextlib.suppress(FileNotFoundError):
            bucket.drop("a")
        for place, files in before.items():
            bucket.put(place, files)
        mirror = make(**own)
        turns(mirror)
        bucket.drop("a") if change == "removed" else bucket.put("a", after["a"])
        with monkeypatch.context() as patched:
            left = killed_after(patched, steps)
            with contextlib.suppress(Killed):
                turns(mirror)
        mirror.close()
        assert here(mirror) in (as_put(**before), as_put(**after))
        again = make(**own)
        turns(again)
        assert here(again) == as_put(**after)
        again.close()
        if left[0]:
            break
    assert left[0], "the last one was not killed"
    assert steps > (12 if change != "removed" else 3), "there is more to interrupt than that"
