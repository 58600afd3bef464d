"""Says what is wrong with a recipe in the recipe's own words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from pydantic import BaseModel, ValidationError


def describe(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """One line for each problem; an unknown key comes with the nearest known one."""
    for problem in error.errors():
        place = [str(part) for part in problem["loc"]]
        name = ".".join(place)
        if problem["type"] == "extra_forbidden":
            yield f"unknown key {name}{_nearest(place, model)}"
        elif problem["type"] == "missing":
            yield f"{name} is missing"
        else:
            yield f"{name}: {problem['msg'].removeprefix('Value error, ')}"


def _nearest(place: list[str], model: type[BaseModel]) -> str:
    known = list(_table(place[:-1], model).model_fields)
    close = difflib.get_close_matches(place[-1], known, n=1)
    return (
        f" (did you mean {'.'.join([*place[:-1], close[0]])}?)" if close else f" (known: {', '.join(known)})"
    )


def _table(place: list[str], model: type[BaseModel]) -> type[BaseModel]:
    for part in place:
        field = model.model_fields[part].annotation
        if not (isinstance(field, type) and issubclass(field, BaseModel)):
            break
        model = field
    return model
