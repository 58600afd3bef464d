"""What callers are told of an error: the one place where that is decided.

Nobody outside is told of the server's inside: no URL (of a database: with its password), no path of this
machine, no name of a class, no traceback. The log keeps all of it.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath

from router.errors import RouterError

MOST = 16_384  # characters looked at; nothing longer is ever told
TRACEBACK = "Traceback (most recent call last)"
_QUOTED = re.compile(r"""(['"])((?:~?/|~?\\|[A-Za-z]:[\\/])[^'"]*)\1""")
_OBJECT = re.compile(r"<[\w.]{1,200} object at 0x[0-9a-f]{1,16}>|<class '[^']{1,200}'>")
_WORD = re.compile(r"""[^\s'"`(),;<>\[\]{}]+""")
_ABSOLUTE = re.compile(r"(?:(?<=[=:@|])|^)(?:~?/(?=[^/])|//(?=\w)|\\\\(?=\w)|[A-Za-z]:[\\/](?=\w))")
_SOURCE = re.compile(r"\.pyc?(?::\d+)?$")
_CLASS = re.compile(r"(?:^|(?<=[=:]))(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt)$")


def told(error: RouterError) -> str:
    """The message as callers get it; of some classes the text is fixed."""
    return error.told or clean(error.message)


def withheld(error: RouterError) -> bool:
    """Whether message or metadata say more than callers are told."""
    return told(error) != error.message or any(clean(text) != text for text in error.metadata.values())


def clean(text: str, files: bool = False) -> str:
    """`text` without URLs, absolute paths, names of exceptions and tracebacks.

    With `files` the last part of a path stays: that of a file in an adapter's folder, for who looks after it.

    >>> clean("FileNotFoundError: no '/srv/models/a b.bin', see http://wiki.local/x")
    "[error]: no '[path]', see [url]"
    >>> clean("cannot read /srv/adapters/medical/adapter.toml: denied", files=True)
    'cannot read adapter.toml: denied'
    """
    head, traced, _ = text[:MOST].partition(TRACEBACK)
    head = _OBJECT.sub("[object]", head)
    head = _QUOTED.sub(lambda found: f"{found[1]}{_path(found[2], files)}{found[1]}", head)
    head = _WORD.sub(lambda found: _word(found[0], files), head)
    return f"{head}[traceback]" if traced else head


def _word(word: str, files: bool) -> str:
    bare = word.rstrip(".:!?")
    end = word[len(bare) :]
    if "://" in bare:
        return "[url]" + end
    if (found := _ABSOLUTE.search(bare)) is not None:
        return bare[: found.start()] + _path(bare[found.start() :], files) + end
    if _SOURCE.search(bare):
        return "[path]" + end
    return _CLASS.sub("[error]", bare) + end


def _path(path: str, files: bool) -> str:
    kind = PureWindowsPath if "\\" in path else PurePosixPath
    return (kind(path).name if files else "") or "[path]"
