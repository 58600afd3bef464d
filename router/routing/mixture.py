"""The adapters of a mixture that a caller names, found among those that are there for the caller."""

from __future__ import annotations

from collections.abc import Sequence

from router.errors import FieldViolation, InvalidRequest
from router.names import parse_adapter
from router.ports import Catalog
from router.types import AdapterInfo, MixturePart, Visible

FIELD = "routing.mixture"


def mixed(
    catalog: Catalog, named: Sequence[tuple[str, float]], visible: Visible
) -> tuple[AdapterInfo | None, tuple[MixturePart, ...]]:
    """The parts, a version each; or the adapter itself where it is the only one and weighs 1.

    Raises what `Catalog.resolve` does, and InvalidRequest where two names are of one version.
    """
    found: list[AdapterInfo] = []
    for number, (name, _) in enumerate(named):
        field = f"{FIELD}[{number}].adapter"
        info = catalog.resolve(*parse_adapter(name, field), visible)
        if any(info.ref == other.ref for other in found):
            text = f"{info.ref} is in the mixture already: name a version once, with all its weight"
            raise InvalidRequest([FieldViolation(field, text)])
        found.append(info)
    weights = [weight for _, weight in named]
    if weights == [1.0]:
        return found[0], ()
    return None, tuple(MixturePart(info.ref, weight) for info, weight in zip(found, weights, strict=True))
