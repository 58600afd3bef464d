"""Templates, what they may call, and the static files under names that change with what is in them."""

from __future__ import annotations

import gzip
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from router import quantities
from router.extensions.console.guard import HEADERS
from router.server.http import HttpCall, Reply

TYPES = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
FOREVER = "public, max-age=31536000, immutable"
UNITS = ("B", "kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Asset:
    """A static file, as it is sent."""

    name: str  # with a hash of its content
    body: bytes
    packed: bytes
    content_type: str


@cache
def assets() -> Mapping[str, Asset]:
    """By the name in the folder."""
    found = {}
    files = sorted(resources.files("router.extensions.console").joinpath("static").iterdir(), key=str)
    from router.extensions.experiments.page import STYLE

    files.append(STYLE)
    for file in files:
        stem, _, ending = file.name.rpartition(".")
        if ending in TYPES:
            body = file.read_bytes()
            name = f"{stem}.{hashlib.sha256(body).hexdigest()[:12]}.{ending}"
            found[file.name] = Asset(name, body, gzip.compress(body, mtime=0), TYPES[ending])
    return found


async def serve_static(_: Any, call: HttpCall) -> Reply:
    """Anybody may have these files: they are those of the package."""
    wanted = call.path_parameter("name")
    asset = next((asset for asset in assets().values() if asset.name == wanted), None)
    if asset is None:
        return Reply(b"no such file\n", TYPES["txt"], 404, HEADERS)
    headers = {**HEADERS, "cache-control": FOREVER, "vary": "accept-encoding"}
    packs = "gzip" in ",".join(call.sent_as("accept-encoding"))
    if packs:
        headers["content-encoding"] = "gzip"
    return Reply(asset.packed if packs else asset.body, asset.content_type, headers=headers)


class Renderer:
    """Renders templates; everything in them is escaped unless it says otherwise, which none does."""

    def __init__(self, root: str) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("router.extensions.console"),
            autoescape=True,
            auto_reload=False,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= FILTERS
        self._environment.globals |= {
            "root": root,
            "static": lambda name: f"{root}/static/{assets()[name].name}",
        }

    def render(self, template: str, values: Mapping[str, Any]) -> str:
        """The text of a template."""
        return self._environment.get_template(template).render(values)


def size(count: float) -> str:
    """Bytes for people.

    >>> size(0), size(999), size(4_939_072), size(12_000_000)
    ('0 B', '999 B', '4.9 MB', '12 MB')
    """
    value, unit = float(count), UNITS[0]
    for unit in UNITS:
        if value < 1000 or unit == UNITS[-1]:
            break
        value /= 1000
    return f"{value:.1f} {unit}" if value < 10 and unit != "B" else f"{value:.0f} {unit}"


def seconds(value: float | None) -> str:
    """A time that something takes.

    >>> seconds(None), seconds(0.0123), seconds(1.5), seconds(75)
    ('–', '12 ms', '1.5 s', '75 s')
    """
    if value is None:
        return "–"
    if value < 0.00995:
        return f"{value * 1000:.1f} ms"
    if value < 0.9995:
        return f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


def lasting(value: float) -> str:
    """A time that something has lasted.

    >>> lasting(5), lasting(90), lasting(7_300), lasting(200_000)
    ('5 s', '1 min', '2 h 1 min', '2 d 7 h')
    """
    whole = int(value)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if minutes < 60:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{days} d {hours % 24} h"


def ago(moment: float | None, now: float | None = None) -> str:
    """When something was, of unix seconds; `never` for None and 0."""
    if not moment:
        return "never"
    past = (time.time() if now is None else now) - moment
    return "now" if past < 1 else f"{lasting(past)} ago"


def clock(moment: float) -> str:
    """Unix seconds as date and time of day, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))


TIME = Markup('<time datetime="{}" data-form="{}" title="{} UTC">{}</time>')


def when(moment: float | None, form: str = "full") -> str:
    """Unix seconds as a `<time>` element in UTC, which `console.js` writes in the zone of the viewer.

    `full` names the zone; `bare` and `short`, the time of day alone, do not, for a table whose head has
    `parts.zone()`.

    >>> print(when(0.0), when(1.0, "bare"))  # doctest: +ELLIPSIS
    – <time datetime="1970-01-01T00:00:01Z" data-form="bare" title="...">1970-01-01 00:00:01</time>
    """
    if not moment:
        return "–"
    text = clock(moment)
    return _time(moment, form, {"full": f"{text} UTC", "short": text[11:]}.get(form, text))


def past(moment: float | None) -> str:
    """How long ago it was, as a `<time>` element that has the time as its title; `never` for None and 0."""
    return _time(moment, "ago", ago(moment)) if moment else "never"


def _time(moment: float, form: str, text: str) -> Markup:
    written = clock(moment)
    return TIME.format(written.replace(" ", "T") + "Z", form, written, text)


def percent(share: float | None, digits: int = 1) -> str:
    """A share of 1.

    >>> percent(0.1234), percent(None)
    ('12.3 %', '–')
    """
    return quantities.UNKNOWN if share is None else quantities.percent(share, digits)


def count(number: float) -> str:
    """A number of things, with separators.

    >>> count(12345.0), count(7)
    ('12,345', '7')
    """
    return f"{number:,.0f}"


def segment(text: str) -> str:
    """As a part of a path."""
    return quote(text, safe="")


FILTERS: Mapping[str, Any] = {
    "size": size,
    "seconds": seconds,
    "lasting": lasting,
    "ago": past,
    "clock": clock,
    "count": count,
    "counted": quantities.counted,
    "percent": percent,
    "segment": segment,
    "when": when,
}
