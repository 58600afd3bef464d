"""One adapter from an object store, or from all else that `fsspec` has a driver for.

A store has no commits: what tells one state from another is what it says of each file (ETag, date, size),
looked at before and after. Address and credentials are the driver's own (AWS_…, FSSPEC_S3_ENDPOINT_URL).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

from router.errors import (
    ConfigError,
    DataLoss,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    RouterError,
    Unavailable,
    install_extra,
)
from router.registry.format.untrusted import show
from router.sources.source import FolderSource, Listing, RemoteFile, state_of

BLOCK = 4 << 20
MOST_SIZE = 1 << 50
MOST_FILES = 10_000
NO_FOLDERS = ("http", "https", "data", "zip", "tar", "reference", "github", "git", "hf")
PACKAGES = {
    "s3": install_extra("s3"),
    "s3a": install_extra("s3"),
    "gs": "pip install gcsfs",
    "gcs": "pip install gcsfs",
} | dict.fromkeys(("az", "abfs", "abfss", "adl"), "pip install adlfs")
MARKS = (
    "ETag",
    "etag",
    "LastModified",
    "last_modified",
    "updated",
    "mtime",
    "created",
    "generation",
    "md5Hash",
)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "ProfileNotFound")
R = TypeVar("R")


class Objects(FolderSource):
    """The files under one prefix. See AdapterSource."""

    def __init__(self, url: str, subfolder: str = "") -> None:
        check_url(url)
        super().__init__(url, subfolder)
        self._files, self._path = open_store(self.reference.rstrip("/"))

    def listing(self) -> Listing:
        """See AdapterSource."""
        files, folders, marks = [], [], {}
        for entry in call_driver(self.reference, self._entries):
            full = str(entry.get("name", ""))
            name = full.removeprefix(self._path).lstrip("/") if full.startswith(self._path) else full
            if not name.rstrip("/"):
                continue  # stores may have an object that is called like the folder
            if entry.get("type") == "directory":
                folders.append(name.rstrip("/"))
                continue
            size = entry.get("size")
            if type(size) is not int or not 0 <= size <= MOST_SIZE:
                raise DataLoss(f"the store does not say how large {show(name)} is; nothing was added")
            files.append(RemoteFile(name, size, link=bool(entry.get("islink"))))
            marks[name] = mark_of(entry, size)
        return Listing(tuple(files), tuple(folders), pin=state_of(marks))

    def _entries(self) -> list[Mapping[str, Any]]:
        self._files.invalidate_cache()
        entries = self._files.ls(self._path, detail=True)
        if len(entries) > MOST_FILES:
            raise DataLoss(f"{self.reference} holds {len(entries)} files: name the folder of the adapter")
        return list(entries)

    def read(self, file: RemoteFile) -> Iterator[bytes]:
        """See FolderSource. A block for each request."""
        path, start = f"{self._path}/{file.name}", 0
        while start < file.size:
            end = min(start + BLOCK, file.size)
            block: bytes = call_driver(
                self.reference, partial(self._files.cat_file, path, start=start, end=end)
            )
            if len(block) != end - start:
                text = (
                    f"{file.name}: {file.size} bytes were announced, and {len(block)} came for {end - start}"
                )
                raise DataLoss(f"{text}; nothing was added")
            yield block
            start = end


# -- the driver


def check_url(url: str) -> None:
    """Raise ConfigError for what is no store of folders, and for a secret, which would be recorded."""
    scheme = url.partition("://")[0]
    if scheme in NO_FOLDERS or "::" in url:
        raise ConfigError(
            f"{show(url)[1:-1]}: adapters come from hub:ORG/NAME, a folder, or a store that lists folders (s3://)"
        )
    if ":" in url.partition("://")[2].partition("/")[0].rpartition("@")[0]:
        raise ConfigError(f"{scheme}://: leave secrets out of the source, it is recorded")


def open_store(url: str) -> tuple[Any, str]:
    """The driver and the path in it. Raises ConfigError, FailedPrecondition."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(url)
    except ImportError:
        package = PACKAGES.get(scheme, "install the fsspec driver for it")
        raise ConfigError(f"{scheme}:// needs a driver that is not installed: {package}") from None
    except ValueError as error:
        raise ConfigError(f"{show(url)[1:-1]}: {error}") from None
    except Exception as error:  # drivers that connect at once
        text = f"{scheme}:// cannot be opened: {type(error).__name__}: {show(str(error), 200)[1:-1]}"
        raise FailedPrecondition(text) from error
    return files, str(path).rstrip("/")


def call_driver(reference: str, ask: Callable[[], R]) -> R:
    """The driver's answer; its errors as ours. `reference`: what is read."""
    try:
        return ask()
    except RouterError:
        raise
    except FileNotFoundError:
        raise NotFound("folder", reference, ": nothing is there, or you may not see it") from None
    except PermissionError:
        raise PermissionDenied(f"{reference} may not be read with these credentials") from None
    except Exception as error:  # each driver has errors of its own
        kind = type(error).__name__
        if kind in NO_CREDENTIALS:
            text = f"{reference} wants credentials: AWS_ACCESS_KEY_ID and the like, or FSSPEC_S3_ANON=true"
            raise PermissionDenied(text) from None
        text = f"{reference} cannot be read: {kind}: {show(str(error), 200)[1:-1]}"
        raise Unavailable(f"{text}; run the same command again") from error


def mark_of(entry: Mapping[str, Any], size: int) -> str:
    """What tells a file from what it was, as far as the store says."""
    return f"{size} {[str(entry.get(key, '')) for key in MARKS]}"
