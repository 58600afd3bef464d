"""The template of constraints `sql`: one SELECT over the tables that the prompt names."""

from __future__ import annotations

from typing import Any

from router.engine.constrained.templates import NoSource
from router.extensions.sql.grammar import select_grammar
from router.extensions.sql.schema import tables_of
from router.hookspecs import RegisterTemplate
from router.markers import hookimpl
from router.types import Constraint


def sql(prompt: str) -> Constraint:
    """A grammar of the queries that the prompt's tables can answer. Raises NoSource."""
    tables = tables_of(prompt)
    if not tables:
        raise NoSource("it has neither CREATE TABLE statements nor a line `Tables: NAME(COLUMN, …); …`")
    return Constraint("grammar", select_grammar(tables))


@hookimpl
def register_constraint_templates(register: RegisterTemplate, settings: Any) -> None:
    """`from_prompt = "sql"`."""
    register("sql", sql)
