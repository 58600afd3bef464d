"""Flags of settings: name, kind, default and help come from the pydantic model."""

from __future__ import annotations

import inspect
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args, get_origin

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic.fields import FieldInfo


class WithSettings(TyperCommand):
    """A command that takes some settings as flags. They are made when its help is shown or it is run, since
    the model is slow to import. Values that were given are in the context's `obj`, by the setting's name."""

    settings: ClassVar[tuple[str, ...]] = ()
    defaults: ClassVar[Mapping[str, str]] = {}
    """Of settings for which this command has another default than the model."""

    @cached_property
    def _flags(self) -> list[Any]:
        from router.config import Settings

        def said(**values: Any) -> None:
            """Takes the flags."""

        fields = {name: Settings.model_fields[name] for name in self.settings}
        said.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=flag_of(name, field, self.defaults.get(name, field.default)),
                )
                for name, field in fields.items()
            ]
        )
        made = typer.Typer(add_completion=False)
        made.command(add_help_option=False)(said)
        return typer.main.get_command(made).params

    def get_params(self, ctx: Any) -> list[Any]:
        """The flags of settings, then the command's own."""
        return [*self._flags, *super().get_params(ctx)]

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        given = {name: ctx.params.pop(name) for name in self.settings}
        ctx.obj = {name: value for name, value in given.items() if value not in (None, ())}
        return super().invoke(ctx)


def flag_of(name: str, field: FieldInfo, default: Any) -> Any:
    """The annotation of a flag. Values stay text: the model checks them with those of other sources."""
    option = typer.Option(
        f"--{name.replace('_', '-')}",
        metavar=metavar_of(name, field),
        help=field.description,
        show_default=str(default).lower() if default not in (None, "", (), False) else False,
    )
    kind: Any = str
    if field.annotation is bool:
        kind = bool
    elif get_origin(field.annotation) is tuple:
        kind = list[str]
    return Annotated[kind | None, option]


def metavar_of(name: str, field: FieldInfo) -> str | None:
    """What stands for the value in help; None for a flag without one."""
    kinds = {one for one in (get_args(field.annotation) or (field.annotation,)) if one is not NoneType}
    if bool in kinds:
        return None
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    if get_origin(field.annotation) is tuple:
        return "DIR"
    if Path in kinds:
        return "FILE"
    return "HOST:PORT" if name.endswith("listen") else name.upper()
