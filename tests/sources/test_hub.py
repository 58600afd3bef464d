"""The hub as it is asked, and one that is down, busy, closed or lies."""

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from router.errors import ConfigError, DataLoss, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from router.extensions.hub.source import Hub
from tests.sources.conftest import in_view, staged
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
    assert any(path.endswith("/revision/refs/pr/1") for path in hub.paths())


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


def test_the_token_is_not_sent_in_the_clear(hub, added, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(
        "router.extensions.hub.source.is_safe", lambda _: False
    )  # as for http://mirror.example
    hub.needs = TOKEN
    with pytest.raises(NotFound, match="was not sent, since HF_ENDPOINT is not https"):
        added()
    assert all("authorization" not in headers for _, headers in hub.asked)


@pytest.mark.parametrize(
    "said", ["mirror", "ftp://mirror", "https://", "https://me:secret@mirror", "http://[x"]
)
def test_an_endpoint_that_is_none(hub, monkeypatch, said):
    monkeypatch.setenv("HF_ENDPOINT", said)
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        Hub(REPO)


def test_offline_nobody_is_asked(hub, added, monkeypatch):
    def offline(*_, **__):
        raise OfflineModeIsEnabled

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", offline)
    with pytest.raises(FailedPrecondition, match="HF_HUB_OFFLINE is set"):
        added()


# -- down


def test_no_network_is_one_line(hub, added, adapters, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"no whole answer from http://127.0.0.1:9: .*run the same command"):
        added()
    assert not adapters.exists()


# -- lies


def refused(added, adapters, message):
    with pytest.raises(DataLoss, match=message):
        added()
    assert in_view(adapters) == []
    assert staged(adapters) == []


def test_more_comes_than_was_announced(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS] = adapter_files[WEIGHTS] + b"x" * 10_000
    with pytest.raises((DataLoss, Unavailable)):
        added()
    assert (in_view(adapters), staged(adapters)) == ([], [])
    hub.unsaid.add(WEIGHTS)
    refused(added, adapters, "bytes were announced, and more come")


def test_less_comes_than_was_announced(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS], hub.unsaid = adapter_files[WEIGHTS][:-10], {WEIGHTS}
    with pytest.raises((DataLoss, Unavailable)):
        added()
    assert (in_view(adapters), staged(adapters)) == ([], [])


def test_other_bytes_of_the_same_size(hub, added, adapters, adapter_files):
    hub.sends[WEIGHTS] = adapter_files[WEIGHTS][::-1]
    refused(added, adapters, f"{WEIGHTS}: the bytes that came are not those that were announced")


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"sha": None}, "names no commit"),
        ({"sha": "main"}, "names no commit"),
        ({"siblings": [{"rfilename": 1, "size": 1}]}, "lists a file without a name"),
        ({"siblings": [{"rfilename": "a"}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": -1}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": True}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": 1e3}]}, "does not say how large 'a' is"),
        ({"siblings": [{"rfilename": "a", "size": 10**30}]}, "does not say how large 'a' is"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_listing_that_says_nothing(hub, added, adapters, says, message):
    hub.says = says
    refused(added, adapters, f"the hub {message}.*nothing was added")


def test_a_listing_that_is_none(hub, added, adapters, monkeypatch):
    for body in (b"", b"[]", b"{", b"[" * 100_000, b"\xff", b'{"siblings": [1]}'):
        monkeypatch.setattr(type(hub), "listing", lambda _, body=body: body)
        with pytest.raises((DataLoss, Unavailable)):
            added()
        assert in_view(adapters) == []


def test_another_commit_than_was_asked_for(hub, added, adapters):
    hub.says = {"sha": "ab" * 20}
    with pytest.raises(DataLoss, match="another commit"):
        added(f"hub:{REPO}@{COMMIT}")


def test_a_file_that_is_listed_and_not_there(hub, added, adapters):
    hub.says = {"siblings": [hub.sibling(n, d) for n, d in {**hub.files, "adapter.toml": b"x"}.items()]}
    refused(added, adapters, "lists a file that it does not have")
