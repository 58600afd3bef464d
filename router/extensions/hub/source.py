"""A model hub, as Hugging Face's and its mirrors: `huggingface_hub` asks it, and tries again.

A revision is resolved to a commit, and files are fetched by that. Address, token and the wish to stay offline
are those of the library (HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from router.access.hosts import is_safe
from router.errors import ConfigError, DataLoss, FailedPrecondition, NotFound, PermissionDenied, Unavailable
from router.names import is_version, looks_like_version
from router.registry.format.untrusted import show
from router.sources.source import Listing, Progress, RemoteFile

if TYPE_CHECKING:
    from huggingface_hub import HfApi

MAIN = "main"
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_SIZE = 1 << 50
SECONDS = 30.0  # without an answer


class Hub:
    """One repository of models at one revision. See AdapterSource."""

    def __init__(self, repo: str, revision: str = "", subfolder: str = "") -> None:
        if not REPO.fullmatch(repo) or ".." in repo:
            raise ConfigError(f"hub:{show(repo)[1:-1]} is not hub:ORG/NAME or hub:ORG/NAME@REVISION")
        if revision and (not REVISION.fullmatch(revision) or ".." in revision):
            raise ConfigError(f"{show(revision)} is no revision: a branch, a tag or a commit")
        self._repo, self._revision, self.subfolder = repo, revision or MAIN, subfolder
        self._api, self._how = _client()
        self._commit = ""

    @property
    def reference(self) -> str:
        """See AdapterSource."""
        return f"hub:{self._repo}@{self._revision}"

    @property
    def name(self) -> str:
        """See AdapterSource."""
        return self.subfolder.rpartition("/")[2] or self._repo.partition("/")[2]

    @property
    def version(self) -> str:
        """A tag that is a version is one."""
        tag = self._revision
        return tag if is_version(tag) and looks_like_version(tag) and not COMMIT.fullmatch(tag) else ""

    def listing(self) -> Listing:
        """See AdapterSource."""
        with self._explained():
            found = self._api.model_info(
                self._repo, revision=self._revision, files_metadata=True, timeout=SECONDS
            )
        commit = found.sha
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise _strange("names no commit")
        if COMMIT.fullmatch(self._revision) and commit != self._revision:
            raise _strange("answers with another commit than the one that was asked for")
        self._commit = commit
        start = f"{self.subfolder}/" if self.subfolder else ""
        files = [_file(entry) for entry in found.siblings or ()]
        inside = [
            RemoteFile(file.name.removeprefix(start), file.size, file.sha256)
            for file in files
            if file.name.startswith(start)
        ]
        return Listing(tuple(inside), pin=commit)

    def fetch(self, file: RemoteFile, path: Path, progress: Progress) -> None:
        """See AdapterSource."""
        name = f"{self.subfolder}/{file.name}" if self.subfolder else file.name
        with self._explained():
            came = self._api.hf_hub_download(
                self._repo,
                name,
                revision=self._commit,
                local_dir=path.parent.parent / "hub",
                tqdm_class=_bar(file, progress),
            )
        os.replace(came, path)

    def unchanged(self, listing: Listing) -> bool:
        """A commit never changes."""
        return listing.pin == self._commit

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the library as ours."""
        from huggingface_hub import errors

        where = f"hub:{self._repo}"
        try:
            yield
        except errors.OfflineModeIsEnabled:
            raise FailedPrecondition(
                "HF_HUB_OFFLINE is set, so no hub is asked: unset it, or add a folder"
            ) from None
        except errors.GatedRepoError:
            raise PermissionDenied(
                f"{where} is gated: accept its conditions at {self._api.endpoint}/{self._repo}{self._how}"
            ) from None
        except errors.RevisionNotFoundError:
            name = "revision", self._revision
            raise NotFound(*name, f" in {where}: name a branch, a tag or a commit") from None
        except errors.RepositoryNotFoundError:
            at = f" at {self._api.endpoint}, or it is private{self._how}"
            raise NotFound("repository", where, at) from None
        except errors.RemoteEntryNotFoundError:
            raise DataLoss(f"{where} lists a file that it does not have") from None
        except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status == 403:
                raise PermissionDenied(f"{where} may not be read{self._how}") from None
            raise _no_answer(self._api.endpoint, error.__cause__ or error) from error
        except (ConfigError, DataLoss):
            raise
        except Exception as error:  # of its HTTP library, and of what a hub sends that is no answer
            raise _no_answer(self._api.endpoint, error) from error


def _client() -> tuple[HfApi, str]:
    """The client, and what to say of its token to somebody who may not read. Raises ConfigError."""
    from huggingface_hub import HfApi, constants, get_token

    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(f"HF_ENDPOINT {show(endpoint)} is no address such as https://huggingface.co")
    token = get_token() or ""
    sends = bool(token) and is_safe(endpoint)
    how = "; HF_TOKEN says who asks"
    if token:
        how = "; the token that was sent does not allow it"
        if not sends:
            how = "; the token was not sent, since HF_ENDPOINT is not https"
    return HfApi(endpoint, token=token if sends else False, library_name="lora-router"), how


def _file(entry: Any) -> RemoteFile:
    """One file of the list."""
    if not isinstance(entry.rfilename, str):
        raise _strange("lists a file without a name")
    size = entry.lfs.size if entry.lfs else entry.size
    if type(size) is not int or not 0 <= size <= MOST_SIZE:
        raise _strange(f"does not say how large {show(entry.rfilename)} is")
    sha256 = entry.lfs.sha256 if entry.lfs else ""
    known = isinstance(sha256, str) and SHA256.fullmatch(sha256)
    return RemoteFile(entry.rfilename, size, sha256 if known else "")


def _bar(file: RemoteFile, progress: Progress) -> type[Any]:
    """What the library shows its progress on."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})
            self.done = int(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> None:
            self.done += int(n or 0)
            progress(file.name, self.done, file.size)

    return Bar


def _no_answer(endpoint: str, error: BaseException) -> Unavailable:
    why = show(str(error) or type(error).__name__, 200).strip("'\"")
    return Unavailable(f"no whole answer from {endpoint}: {why}; run the same command again")


def _strange(what: str) -> DataLoss:
    return DataLoss(f"the hub {what}; nothing was added")
