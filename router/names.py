"""Resource names of adapters: `adapters/NAME` and `adapters/NAME/versions/VERSION`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from router.errors import FieldViolation, InvalidRequest
from router.types import AdapterRef

if TYPE_CHECKING:
    from router.v1 import inference_pb2 as pb

AUTO = "auto"  # the model name for: routing picks
BASE = "base"  # asks for the base, as `base` or `adapters/base`: no adapter is called so
_ID = r"[^/\s\x00-\x1f\x7f]{1,63}"
_ADAPTER = re.compile(rf"adapters/({_ID})(?:/versions/({_ID}))?")
_MODEL = re.compile(r"(?:adapters/)?([^/@\s]+)(?:(?:@|/versions/|/)([^/@\s]+))?")
ADAPTER_FORM = "adapters/NAME or adapters/NAME/versions/VERSION"
SHOWN = 63  # characters of a name that is wrong
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

    What is no such name is passed on as it is, and refused where resource names are.
    """
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


def model_name(resource: str) -> str:
    """NAME@VERSION."""
    return resource.removeprefix("adapters/").replace("/versions/", "@")
