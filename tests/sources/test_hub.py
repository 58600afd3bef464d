"""The hub as it is asked, and one that is down, busy, closed or lies."""

import gzip
import os
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ConfigError, DataLoss, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from router.extensions.hub.source import Hub, _after, _file, _onward
from router.sources.adding import AddRequest, add
from tests.sources.conftest import in_view, staged, validate
from tests.sources.fake_hub import COMMIT, REPO, TOKEN, fake_hub
from tests.sources.sources import source_of

WEIGHTS = "adapter_model.safetensors"


def test_a_tag_that_is_a_version_is_the_adapters(hub):
    assert Hub(REPO, "v1.0").version == "v1.0"
    assert [Hub(REPO, revision).version for revision in ("main", "", COMMIT, "7" * 40)] == [""] * 4


@pytest.mark.parametrize(
    "said",
    ["hub:name", "hub:a/b/c", "hub:../b@main", "hub:a/b@../x", "hub:a/b@x y", "hf://a/", "hub:a/b?x=1@main"],
)
def test_what_is_no_repository_is_told(hub, said):
    with pytest.raises(ConfigError):
        source_of(said)
    assert hub.asked == []


def test_revisions_with_a_slash_are_one(hub, added):
    hub.revisions = {"refs/pr/1"}
    assert added(f"hf://{REPO}@refs%2Fpr%2F1").origin.source == f"hub:{REPO}@refs/pr/1"
    assert hub.paths()[0].endswith("/revision/refs/pr/1")


def test_it_is_asked_as_its_own_library_asks(hub):
    from huggingface_hub import HfApi, hf_hub_url

    known = HfApi(endpoint=hub.url).model_info(REPO, revision="v1.0", files_metadata=True)
    source = Hub(REPO, "v1.0")
    listing = source.listing()
    theirs, ours = (url for url in hub.urls if "/models/" in url)
    assert theirs == ours
    assert listing.commit == known.sha
    files = {s.rfilename: (s.size, s.lfs.sha256 if s.lfs else s.blob_id) for s in known.siblings or ()}
    assert {f.name: (f.size, f.check.value if f.check else "") for f in listing.files} == files
    config = next(file for file in listing.files if file.name == "adapter_config.json")
    list(source.read(config, 0))
    url = hf_hub_url(REPO, config.name, revision=COMMIT, endpoint=hub.url)
    assert hub.url + hub.urls[-1] == url


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.binary(max_size=4).map(bytes.hex),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["rfilename", "size", "lfs", "sha256", "blobId"]), inner, max_size=4
            )
        ),
        max_leaves=8,
    )
)
def test_any_entry_is_a_file_or_refused(said):
    try:
        file = _file(said)
    except DataLoss:
        return
    assert isinstance(file.name, str)
    assert file.size >= 0


# -- who may


def test_an_unknown_repository(hub, added):
    with pytest.raises(
        NotFound, match=r"repository 'hub:org/none' not found .*or it is private; HF_TOKEN says"
    ):
        added("hub:org/none")


def test_an_unknown_revision(hub, added):
    with pytest.raises(NotFound, match="revision 'v9' not found in hub:org/some-lora"):
        added(f"hub:{REPO}@v9")


def test_a_gated_one_wants_a_token_that_is_never_shown(hub, added, monkeypatch, caplog):
    hub.needs, hub.gated = TOKEN, True
    with pytest.raises(
        PermissionDenied, match=f"is gated: accept its conditions at {hub.url}/{REPO}; HF_TOKEN"
    ):
        added()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionDenied, match="the token that was sent does not allow it") as refused:
        added()
    assert "hf_wrong" not in str(refused.value) + caplog.text
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert added()


def test_the_token_goes_to_the_hub_alone(hub, added, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.needs = TOKEN
    with fake_hub() as elsewhere:
        elsewhere.files = hub.files
        hub.leads = elsewhere.url
        added()
        assert elsewhere.paths() == [f"/cdn/{WEIGHTS}"]
        assert all("authorization" not in headers for _, headers in elsewhere.asked)
    assert all("authorization" in headers for _, headers in hub.asked)


def test_the_token_is_not_sent_in_the_clear(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror.example")
    source = Hub(REPO)
    assert source._who("http://mirror.example/x") == {}
    assert "was not sent, since HF_ENDPOINT is not https" in source._how()


@pytest.mark.parametrize(
    "said", ["mirror", "ftp://mirror", "https://", "https://me:secret@mirror", "http://[x"]
)
def test_an_endpoint_that_is_none(hub, monkeypatch, said):
    monkeypatch.setenv("HF_ENDPOINT", said)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        Hub(REPO)


def test_offline_nobody_is_asked(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FailedPrecondition, match="HF_HUB_OFFLINE is set"):
        Hub(REPO)


# -- down and busy


def test_no_network_is_one_line(hub, adapters, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    waited: list[float] = []
    with pytest.raises(Unavailable, match=r"no whole answer from http://127.0.0.1:9: .*\(6 attempts\)"):
        add(
            AddRequest(Hub(REPO), adapters, 1 << 20), validate, lambda *_: None, lambda _, s: waited.append(s)
        )
    assert waited == [1, 2, 4, 8, 16]
    assert not adapters.exists()


def test_a_busy_hub_is_asked_again_when_it_says(hub, adapters):
    hub.busy = [(429, {"Retry-After": "7"}), (503, {}), (429, {"RateLimit": '"api";r=0;t=55'})]
    waited: list[float] = []
    add(AddRequest(Hub(REPO), adapters, 1 << 20), validate, lambda *_: None, lambda _, s: waited.append(s))
    assert waited == [7, 2, 55]


def test_a_hub_that_wants_to_wait_for_hours_is_not_waited_for(hub, added):
    hub.busy = [(429, {"Retry-After": "7200"})]
    with pytest.raises(Unavailable, match="answers 429, and asks to wait 7200 s"):
        added()


def test_dates_of_retry_after():
    later = _after({"retry-after": formatdate(time.time() + 90, usegmt=True)})
    assert later is not None
    assert 80 < later <= 90
    assert [_after({"retry-after": said}) for said in ("", "soon", "-1", "9" * 30)] == [None] * 4


def test_a_line_that_breaks_is_taken_up_where_it_broke(hub, added, adapter_files):
    hub.cuts[WEIGHTS] = [100, 200, 300]
    done = added()
    assert (done.folder / WEIGHTS).read_bytes() == adapter_files[WEIGHTS]
    ranges = [headers.get("range") for path, headers in hub.asked if path.startswith("/cdn/")]
    assert ranges == [None, "bytes=100-", "bytes=300-", "bytes=600-"]


def test_a_hub_without_ranges_begins_again(hub, added, adapter_files):
    hub.ranges, hub.cuts[WEIGHTS] = False, [100]
    assert (added().folder / WEIGHTS).read_bytes() == adapter_files[WEIGHTS]


# -- lies


def refused(added, adapters, message):
    with pytest.raises(DataLoss, match=message):
        added()
    assert in_view(adapters) == []
    assert staged(adapters) == {}


def test_more_comes_than_was_announced(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS] = adapter_files[WEIGHTS] + b"x" * 10_000
    refused(added, adapters, "bytes were announced, and the hub is about to send")
    hub.unsaid.add(WEIGHTS)
    refused(added, adapters, "bytes were announced, and more come")


def test_more_than_all_disks_hold_is_stopped_at_what_was_announced(
    hub, added, adapters, adapter_files, monkeypatch
):
    hub.sends[WEIGHTS], hub.unsaid = adapter_files[WEIGHTS] + bytes(64 << 20), {WEIGHTS}
    real, sizes = os.write, []
    monkeypatch.setattr("router.sources.transfer.os.write", lambda to, b: sizes.append(len(b)) or real(to, b))
    with pytest.raises(DataLoss, match="more come"):
        added()
    assert sum(sizes) <= sum(map(len, adapter_files.values()))


def test_less_comes_than_was_announced(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS] = adapter_files[WEIGHTS][:-10]
    refused(added, adapters, "bytes were announced, and the hub is about to send")
    hub.unsaid.add(WEIGHTS)
    with pytest.raises((DataLoss, Unavailable), match="were announced, and"):
        added()
    assert in_view(adapters) == []


def test_other_bytes_of_the_same_size(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS] = adapter_files[WEIGHTS][::-1]
    refused(added, adapters, f"{WEIGHTS}: the bytes that came are not those that were announced")
    hub.sends = {"adapter_config.json": adapter_files["adapter_config.json"][::-1]}
    refused(added, adapters, "adapter_config.json: the bytes that came are not")


def test_a_spoilt_part_is_fetched_anew_once(hub, added, adapters, adapter_files):
    hub.cuts[WEIGHTS] = [100]
    right, hub.sends[WEIGHTS] = adapter_files[WEIGHTS], b"x" * len(adapter_files[WEIGHTS])
    source = Hub(REPO, "v1.0")

    def progress(name, done, total):
        if name == WEIGHTS and done == 100:
            hub.sends.clear()

    done = add(AddRequest(source, adapters, 1 << 20), validate, progress, lambda *_: None)
    assert (done.folder / WEIGHTS).read_bytes() == right


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"sha": None}, "names no commit"),
        ({"sha": "main"}, "names no commit"),
        ({"siblings": None}, "lists no files"),
        ({"siblings": [1]}, "lists a file without a name"),
        ({"siblings": [{"rfilename": "a"}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": -1}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": True}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": 1e3}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": 10**30}]}, "does not say how large 'a' is"),
        ({"padding": "x" * (9 << 20)}, "lists files in more than"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_listing_that_says_nothing(hub, added, adapters, says, message):
    hub.says = says
    refused(added, adapters, f"the hub {message}.*nothing was added")


def test_a_listing_that_is_none(hub, added, adapters, monkeypatch):
    for body in (b"", b"[]", b"{", b"[" * 100_000, b"\xff"):
        monkeypatch.setattr(type(hub), "listing", lambda _, body=body: body)
        refused(added, adapters, "no JSON object")


def test_another_commit_than_was_asked_for(hub, added, adapters):
    hub.says = {"sha": "ab" * 20}
    with pytest.raises(DataLoss, match="another commit"):
        added(f"hub:{REPO}@{COMMIT}")


def test_a_file_that_is_listed_and_not_there(hub, added, adapters):
    hub.says = {"siblings": [hub.sibling(n, d) for n, d in {**hub.files, "adapter.toml": b"x"}.items()]}
    refused(added, adapters, "lists a file that it does not have")


def test_bytes_that_are_packed_unasked(hub, added, adapters, adapter_files):
    hub.sends["adapter_config.json"] = gzip.compress(bytes(1 << 20))
    hub.headers, hub.unsaid = {"Content-Encoding": "gzip"}, {"adapter_config.json"}
    refused(added, adapters, "sends adapter_config.json as 'gzip'")


@pytest.mark.parametrize(
    ("where", "message"),
    [("ftp://x", "an address that is none"), ("http://[", "is none"), ("/loop", "from one")],
)
def test_redirects_that_lead_nowhere(hub, added, adapters, where, message, monkeypatch):
    hub.leads = where
    hub.busy = [(302, {"Location": f"{where}/cdn"})] * 9
    refused(added, adapters, message)
    hub.busy = []


def test_https_is_not_left():
    with pytest.raises(DataLoss, match="leads away from https"):
        _onward("https://hub.example/a", "http://hub.example/b")
    assert _onward("https://hub.example/a/b", "/c") == "https://hub.example/c"
