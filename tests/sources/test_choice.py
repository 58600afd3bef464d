from router.sources.source import Listing, RemoteFile
from router.sources.transfer import Left, choose, left_out

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def listing(*names, folders=()):
    return Listing(tuple(RemoteFile(name, 10) for name in (CONFIG, WEIGHTS, *names)), folders)


def test_small_files_come_first_whatever_the_order_of_the_list():
    chosen = choose(listing("README.md", "adapter.toml", "adapter.sig"), report=False, most=100)
    names = [file.name for file in chosen.taken]
    assert names == ["adapter.toml", CONFIG, "adapter.sig", "README.md", WEIGHTS]
    assert chosen.bytes == 50


def test_names_are_compared_as_they_are():
    odd = ("Adapter.toml", "adapter.toml ", "ADAPTER_MODEL.safetensors", "adapter_model.safetensors.bak")
    assert {left.name for left in choose(listing(*odd), report=False, most=100).left} == set(odd)


def test_texts_that_are_too_large_stay_there():
    whole = Listing((*listing().files, RemoteFile("README.md", 2 << 20)))
    assert [left.name for left in choose(whole, report=False, most=100).left] == ["README.md"]


def test_what_was_left_is_told_by_reason():
    left = choose(
        listing("a.png", "x.pt", "b.png", "c/x", "c/y", folders=("d",)), report=False, most=100
    ).left
    assert left_out(left) == (
        "'x.pt' (pickle, which runs code when it is read); 'd/' (a folder); 'c/' (a folder with 2 files); "
        "'a.png', 'b.png' (no file of an adapter)"
    )
    assert left_out([Left("\x1b[2J", "code")]) == "'\\x1b[2J' (code)"
