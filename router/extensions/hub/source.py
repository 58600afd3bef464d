"""A model hub, as Hugging Face's and its mirrors speak: a revision is resolved to a commit, and files are
asked for by that.

Answers are streams that are read within bounds of our own, so that nothing a hub says decides how much
memory or disk it takes. Address, token and the wish to stay offline are those of `huggingface_hub`
(HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from router.access.hosts import is_local, is_safe
from router.errors import ConfigError, DataLoss, FailedPrecondition, NotFound, PermissionDenied, RouterError
from router.names import is_version, looks_like_version
from router.registry.format.untrusted import show
from router.sources.source import Check, Listing, Passing, RemoteFile, StartOver

if TYPE_CHECKING:
    import ssl

    import httpx2

MAIN = "main"
REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")
COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
USED_UP = re.compile(r";\s*r=0;\s*t=(\d{1,9})\b")  # of a RateLimit header
MOST_SIZE = 1 << 50
LISTING_BYTES = 8 << 20
SECONDS = 30.0  # without a byte
REDIRECTS = 5
BUSY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class Hub:
    """One repository of models at one revision. See Source."""

    def __init__(self, repo: str, revision: str = "", subfolder: str = "") -> None:
        if not REPO.fullmatch(repo) or ".." in repo:
            raise ConfigError(f"hub:{show(repo)[1:-1]} is not hub:ORG/NAME or hub:ORG/NAME@REVISION")
        if revision and (not REVISION.fullmatch(revision) or ".." in revision):
            raise ConfigError(f"{show(revision)} is no revision: a branch, a tag or a commit")
        self._repo, self._revision, self.subfolder = repo, revision or MAIN, subfolder
        self._endpoint, self._token = _endpoint(), _token()
        self._sends_token = bool(self._token) and is_safe(self._endpoint)
        self._commit = ""
        self._client = _client(self._endpoint)

    @property
    def reference(self) -> str:
        """See Source."""
        return f"hub:{self._repo}@{self._revision}"

    @property
    def name(self) -> str:
        """See Source."""
        return self.subfolder.rpartition("/")[2] or self._repo.partition("/")[2]

    @property
    def version(self) -> str:
        """A tag that is a version is one."""
        tag = self._revision
        return tag if is_version(tag) and looks_like_version(tag) and not COMMIT.fullmatch(tag) else ""

    def listing(self) -> Listing:
        """See Source."""
        path = f"/api/models/{self._repo}/revision/{quote(self._revision, safe='')}?blobs=true"
        with self._get(path, {}) as answer:
            document = _object(_whole(answer))
        commit = document.get("sha")
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise _strange("names no commit")
        if COMMIT.fullmatch(self._revision) and commit != self._revision:
            raise _strange("answers with another commit than the one that was asked for")
        self._commit = commit
        files = document.get("siblings")
        if not isinstance(files, list):
            raise _strange("lists no files")
        return Listing(tuple(self._inside(map(_file, files))), commit=commit)

    def _inside(self, files: Iterator[RemoteFile]) -> Iterator[RemoteFile]:
        """Those in the folder that was asked for, named from there on."""
        start = f"{self.subfolder}/" if self.subfolder else ""
        for file in files:
            if file.name.startswith(start):
                yield RemoteFile(file.name.removeprefix(start), file.size, file.check)

    def read(self, file: RemoteFile, start: int) -> Generator[bytes, None, None]:
        """See Source."""
        name = f"{self.subfolder}/{file.name}" if self.subfolder else file.name
        path = f"/{self._repo}/resolve/{self._commit}/{quote(name)}"
        with self._get(path, {"range": f"bytes={start}-"} if start else {}) as answer:
            _check_answer(answer, file, start)
            yield from answer.iter_raw()  # as it comes: what was cut off is not lost

    def unchanged(self, listing: Listing) -> bool:
        """A commit never changes."""
        return listing.commit == self._commit

    @contextmanager
    def _get(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx2.Response]:
        """The answer to a GET, redirects followed: the token goes to the hub alone, nothing leaves https."""
        import httpx2

        url = self._endpoint + path
        try:
            for _ in range(REDIRECTS):
                with self._client.stream("GET", url, headers={**headers, **self._who(url)}) as answer:
                    target = answer.headers.get("location")
                    if not answer.is_redirect or target is None:
                        self._check(answer)
                        yield answer
                        return
                    url = _onward(url, target)
            raise _strange("leads from one address to the next")
        except httpx2.InvalidURL:
            raise _strange("leads to an address that is none") from None
        except httpx2.HTTPError as error:
            raise Passing(f"no whole answer from {self._endpoint}: {_plain(error)}") from error

    def _who(self, url: str) -> dict[str, str]:
        own = self._sends_token and _origin(url) == _origin(self._endpoint)
        return {"authorization": f"Bearer {self._token}"} if own else {}

    def _check(self, answer: httpx2.Response) -> None:
        """Raise what an answer other than a good one means."""
        status = answer.status_code
        if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            return
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and "range" in answer.request.headers:
            raise StartOver
        if status in BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise Passing(f"{self._endpoint} answers {status}", _after(answer.headers))
        raise self._refused(status, answer.headers.get("x-error-code", ""), answer.headers)

    def _refused(self, status: int, code: str, headers: Mapping[str, str]) -> RouterError:
        where = f"{self._endpoint}/{self._repo}"
        if code == "RevisionNotFound":
            return NotFound(
                "revision", self._revision, f" in hub:{self._repo}: name a branch, a tag or a commit"
            )
        if code == "GatedRepo":
            return PermissionDenied(
                f"hub:{self._repo} is gated: accept its conditions at {where}{self._how()}"
            )
        if headers.get("x-error-message", "").startswith("Invalid credentials"):
            return PermissionDenied(f"the hub does not take the token: make another one{self._how()}")
        if code == "EntryNotFound":
            return DataLoss(f"hub:{self._repo} lists a file that it does not have")
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND) or code == "RepoNotFound":
            return NotFound(
                "repository", f"hub:{self._repo}", f" at {self._endpoint}, or it is private{self._how()}"
            )
        if status == HTTPStatus.FORBIDDEN:
            return PermissionDenied(f"hub:{self._repo} may not be read{self._how()}")
        return FailedPrecondition(f"{self._endpoint} answers {status}")

    def _how(self) -> str:
        if self._token and not self._sends_token:
            return "; the token was not sent, since HF_ENDPOINT is not https"
        return "; the token that was sent does not allow it" if self._token else "; HF_TOKEN says who asks"


def _endpoint() -> str:
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        raise FailedPrecondition("HF_HUB_OFFLINE is set, so no hub is asked: unset it, or add a folder")
    endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    try:
        parts = urlsplit(endpoint)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(f"HF_ENDPOINT {show(endpoint)} is no address such as https://huggingface.co")
    return endpoint


def _token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""


def _client(endpoint: str) -> httpx2.Client:
    import httpx2

    from router import __version__

    return httpx2.Client(
        verify=_certificates(),
        trust_env=not is_local(endpoint),
        timeout=SECONDS,
        follow_redirects=False,
        headers={"accept-encoding": "identity", "user-agent": f"lora-router/{__version__}"},
    )


@cache
def _certificates() -> ssl.SSLContext:
    """Those of this machine; reading them takes a while."""
    import httpx2

    return httpx2.create_ssl_context()


def _onward(url: str, target: str) -> str:
    try:
        onward = urljoin(url, target)
        _origin(onward)
    except ValueError:
        raise _strange("leads to an address that is none") from None
    if url.startswith("https:") and not onward.startswith("https:"):
        raise _strange("leads away from https")
    if not onward.startswith(("http:", "https:")):
        raise _strange("leads to an address that is none")
    return onward


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _whole(answer: httpx2.Response) -> bytes:
    data = bytearray()
    for block in answer.iter_raw():
        data += block
        if len(data) > LISTING_BYTES:
            raise _strange(f"lists files in more than {LISTING_BYTES} bytes")
    return bytes(data)


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _strange("lists files by what is no JSON object")
    return document


def _file(entry: Any) -> RemoteFile:
    """One file of the list, with the best checksum that the hub gives."""
    entry = entry if isinstance(entry, dict) else {}
    lfs = entry.get("lfs") if isinstance(entry.get("lfs"), dict) else {}
    name, size, blob = (
        entry.get("rfilename"),
        lfs.get("size", entry.get("size")),
        entry.get("blobId"),
    )
    if not isinstance(name, str):
        raise _strange("lists a file without a name")
    if type(size) is not int or not 0 <= size <= MOST_SIZE:
        raise _strange(f"does not say how large {show(name)} is")
    if isinstance(value := lfs.get("sha256"), str) and SHA256.fullmatch(value):
        return RemoteFile(name, size, Check("sha256", value))
    is_git = isinstance(blob, str) and COMMIT.fullmatch(blob) and not lfs
    return RemoteFile(name, size, Check("git", blob) if is_git else None)


def _check_answer(answer: httpx2.Response, file: RemoteFile, start: int) -> None:
    """What an answer says of itself must agree with what was announced. Raises StartOver, DataLoss."""
    coding = answer.headers.get("content-encoding", "identity")
    if coding != "identity":
        raise _strange(f"sends {file.name} as {show(coding)}, which was not asked for")
    if start and answer.status_code != HTTPStatus.PARTIAL_CONTENT:
        raise StartOver
    if start:
        found = RANGE.fullmatch(answer.headers.get("content-range", ""))
        if found is None or int(found[1]) != start:
            raise StartOver
        if int(found[3]) != file.size:
            raise _other_size(file, int(found[3]))
    length = answer.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and len(length) < 19 and int(length) != file.size - start:
        raise _other_size(file, int(length) + start)


def _other_size(file: RemoteFile, size: int) -> DataLoss:
    return DataLoss(f"{file.name}: {file.size} bytes were announced, and the hub is about to send {size}")


def _after(headers: Mapping[str, str]) -> float | None:
    """How long a busy hub asks to wait: Retry-After, in seconds or as a date, or when its rate limit ends."""
    retry_after = headers.get("retry-after", "").strip()
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    if retry_after and (date := email.utils.parsedate_tz(retry_after)) is not None:
        return max(0.0, email.utils.mktime_tz(date) - time.time())
    used_up = USED_UP.search(headers.get("ratelimit", ""))
    return float(used_up[1]) if used_up is not None else None


def _plain(error: Exception) -> str:
    return show(str(error) or type(error).__name__, 200).strip("'\"")


def _strange(what: str) -> DataLoss:
    return DataLoss(f"the hub {what}; nothing was added")
