"""Names and versions of adapters: what is allowed, their order, and resource names: `adapters/NAME` and
`adapters/NAME/versions/VERSION`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from heapq import nsmallest
from typing import TYPE_CHECKING

from router.errors import FieldViolation, InvalidRequest
from router.types import AdapterRef

if TYPE_CHECKING:
    from router.v1 import inference_pb2 as pb

AUTO = "auto"  # the model name for: routing picks
CHAT_ID, COMPLETION_ID = "chatcmpl-", "cmpl-"  # in front of the ids of answers in OpenAI's API
ID_PREFIXES = (CHAT_ID, COMPLETION_ID, "resp_")
BASE = "base"  # asks for the base, as `base` or `adapters/base`: no adapter is called so
_ID = r"[^/\s\x00-\x1f\x7f]{1,63}"
_ADAPTER = re.compile(rf"adapters/({_ID})(?:/versions/({_ID}))?")
_MODEL = re.compile(r"(?:adapters/)?([^/@:\s]+)(?:(?:@|/versions/|/|:)([^/@:\s]+))?")
LATEST = ":latest"  # how some clients end every name
ADAPTER_FORM = "adapters/NAME or adapters/NAME/versions/VERSION"
SHOWN = 63  # characters of a name that is wrong
MOST_MODEL = 128  # characters of what a caller calls a model
VERSION_FORM = "adapters/NAME/versions/VERSION"


def name_from_folder(folder: str) -> str:
    """The adapter name a folder's name gives: lower case, other characters become '-'; '' if none is left.

    >>> name_from_folder("My LoRA"), name_from_folder("base")
    ('my-lora', 'base-adapter')
    """
    lowered = re.sub(r"[^a-z0-9._-]+", "-", folder[:255].lower())
    name = lowered.lstrip("._-")[:63].rstrip("-")
    return f"{BASE}-adapter" if name == BASE else name


def adapter_rule(resource: str) -> str:
    """What is wrong with a name that is no resource name; for a folder's own name, what it is served as.

    >>> adapter_rule("adapters/My LoRA").partition("; ")[2]
    "a folder 'My LoRA' is served as adapters/my-lora"
    """
    folder = resource.removeprefix("adapters/")[:SHOWN]
    served = name_from_folder(folder)
    rule = f"must be {ADAPTER_FORM}"
    likely = served and served != folder and "/" not in folder and folder.isprintable()
    return f"{rule}; a folder {folder!r} is served as adapters/{served}" if likely else rule


def split_adapter(resource: str) -> tuple[str, str] | None:
    """(name, version) with version '' where none is given; None if `resource` is no such name."""
    match = _ADAPTER.fullmatch(resource)
    return (match[1], match[2] or "") if match else None


def model_asked(routing: pb.Routing) -> str:
    """What a request names, in the form of `model` over HTTP; of a wrong name the beginning."""
    if routing.mixture:
        return "mixture"
    parts = split_adapter(routing.adapter)
    if parts is None:
        return routing.adapter[:MOST_MODEL] or AUTO
    name, version = parts
    return f"{name}@{version}" if version else name


def parse_adapter(resource: str, field: str = "name") -> tuple[str, str]:
    """Like `split_adapter`; raises InvalidRequest naming `field`."""
    parts = split_adapter(resource)
    if parts is None:
        raise InvalidRequest([FieldViolation(field, adapter_rule(resource))])
    return parts


def parse_version(resource: str, field: str = "name") -> AdapterRef:
    """A name that must give a version; raises InvalidRequest naming `field`."""
    name, version = split_adapter(resource) or ("", "")
    if not version:
        raise InvalidRequest([FieldViolation(field, f"must be {VERSION_FORM}")])
    return AdapterRef(name, version)


def resource_of(model: str) -> str:
    """The adapter's resource name: of NAME, NAME@VERSION, or a resource name; '' for `auto`.

    NAME:VERSION is understood, too, and NAME:latest is NAME. What is no such name is passed on as it is, and
    refused where resource names are.

    >>> resource_of("medical@1.2.0"), resource_of("medical:latest")
    ('adapters/medical/versions/1.2.0', 'adapters/medical')
    """
    model = model.removesuffix(LATEST)
    if model in (AUTO, BASE):
        return "" if model == AUTO else BASE
    found = _MODEL.fullmatch(model)
    if found is None:
        return model
    name, version = found.groups()
    return f"adapters/{name}" + (f"/versions/{version}" if version else "")


def model_of(decision: pb.Decision) -> str:
    """The adapter that answered, as a model's name."""
    if decision.mixture:
        return "+".join(model_name(part.adapter) for part in decision.mixture)
    return model_name(decision.adapter) if decision.adapter else BASE


def bare_response_id(text: str) -> str:
    """The id of an answer without what OpenAI's API puts in front.

    >>> bare_response_id("chatcmpl-0a1b"), bare_response_id("0a1b")
    ('0a1b', '0a1b')
    """
    return next((text[len(prefix) :] for prefix in ID_PREFIXES if text.startswith(prefix)), text)


def model_name(resource: str) -> str:
    """NAME@VERSION."""
    return resource.removeprefix("adapters/").replace("/versions/", "@")


# -- names and versions

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+-]{0,62}")
DEFAULT_VERSION = "0"
NAME_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit, and not 'base'"
LABEL_RULE = "1 to 63 of a-z, 0-9, '.', '_', '-', starting with a letter or digit"
VERSION_RULE = "1 to 63 of letters, digits, '.', '+', '-', starting with a letter or digit"


def is_name(text: str) -> bool:
    """Whether `text` may name an adapter; `base` asks for the base."""
    return is_label(text) and text != BASE


def is_label(text: str) -> bool:
    """Whether `text` may be a domain or a task."""
    return NAME.fullmatch(text) is not None


def is_version(text: str) -> bool:
    """Whether `text` may be a version."""
    return VERSION.fullmatch(text) is not None


# -- order of versions, and hints for names that were mistyped

Key = tuple[object, ...]

_DIGITS = 18  # longer runs of digits are text: nobody counts that far
_LONGEST = 63
_MANY = 300  # names compared for one hint: it is made on the event loop


def version_key(version: str) -> Key:
    """Sort key by semantic versioning 2.0.0, section 11; what is no such version sorts below all that are.

    Leading "v", missing minor or patch numbers are tolerated; build metadata only breaks ties.

    >>> sorted(["1.10.0", "1.9", "1.10.0-rc.1", "latest"], key=version_key)
    ['latest', '1.9', '1.10.0-rc.1', '1.10.0']
    """
    body, _, build = version.partition("+")
    core, dash, prerelease = body.partition("-")
    numbers = core.removeprefix("v").split(".")
    if not all(_is_number(n) for n in numbers) or (dash and not prerelease):
        return (0, version)
    values = [int(n) for n in numbers]
    padded = (*values, *(0 for _ in range(3 - len(values))))
    return (1, padded, _prerelease_key(prerelease), build, version)


def _prerelease_key(prerelease: str) -> Key:
    if not prerelease:
        return (1,)
    parts = prerelease.split(".")
    return (0, tuple((0, int(p), "") if _is_number(p) else (1, 0, p) for p in parts))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def looks_like_version(text: str) -> bool:
    """Whether a folder of this name inside NAME/ is one of its versions."""
    return version_key(text)[0] == 1


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of a not-found message: names close to `name`, or how many there are."""
    names = list(known)
    asked = name[:_LONGEST]
    likely = names if len(names) <= _MANY else [n for n in names if n[:1] == asked[:1]]
    close = difflib.get_close_matches(asked, likely[:_MANY], n=3, cutoff=0.6)
    if close:
        return f"; did you mean {', '.join(map(repr, close))}?"
    if not names:
        return "; no adapter is there yet"
    shown = ", ".join(nsmallest(5, names))
    return f"; known: {shown}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def known_versions(versions: Iterable[str]) -> str:
    """The end of a not-found message: the versions there are, newest first, at most ten."""
    ordered = sorted(versions, key=version_key, reverse=True)
    more = f" and {len(ordered) - 10} more" if len(ordered) > 10 else ""
    return f"; its versions: {', '.join(ordered[:10])}{more}"
