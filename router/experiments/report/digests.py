"""Did what was tested change while it was tested?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from router.experiments.report.words import short

PARTS = ("adapter", "base", "router")


def changed(digests: Mapping[str, tuple[str, ...]], routers: bool) -> tuple[str, ...]:
    """What changed under a phase, by arm, in words. Of `adapter/base/router` texts, in order of time.

    No adapter is no change of it: the base answered, as an arm does that has none or could not load its
    own. In a router experiment every arm has all adapters.
    """
    return tuple(_changed(digests, PARTS[1:] if routers else PARTS))


def _changed(digests: Mapping[str, tuple[str, ...]], parts: tuple[str, ...]) -> Iterator[str]:
    for arm, found in digests.items():
        split = [text.split("/") for text in found]
        for part in parts:
            place = PARTS.index(part)
            seen = dict.fromkeys(s[place] for s in split if len(s) > place and s[place])
            if len(seen) > 1:
                yield f"{part} of {arm} ({' -> '.join(map(short, seen))})"
