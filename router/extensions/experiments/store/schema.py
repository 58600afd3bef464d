"""The version of the tables, and the views over them.

The first tables of lora-router 0.3 have version 10; a database with another version is refused.

Views are for people and programs that read the database themselves: the part of it that stays as it is. The
tables may change with any version; a view keeps its columns, and new ones come behind the old. Only
experiments that were not deleted are in them. They are made with the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    case,
    insert,
    inspect,
    literal_column,
    select,
)

from router.errors import ConfigError
from router.extensions.experiments.store import tables
from router.extensions.experiments.store.tables import (
    PREFIX,
    experiments,
    outcomes,
    phases,
    units,
    values,
    version,
)

VERSION = 10


def migrate(conn: Connection) -> None:
    """Make the tables where there are none. The connection is the only writer: two servers that open one
    database at once come one after the other. Raises ConfigError if they are of another version."""
    there = _version(conn)
    if there is None:
        tables.metadata.create_all(conn)
        _make_views(conn)
        conn.execute(insert(version).values(version=VERSION))
    else:
        _refuse_other(there)


def check_version(conn: Connection) -> None:
    """Raises ConfigError if the tables are not there, or are of another version."""
    there = _version(conn)
    if there is None:
        raise ConfigError("there is no such database of experiments: it has no tables of lora-router")
    _refuse_other(there)


def _refuse_other(there: int) -> None:
    if there > VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program knows {VERSION}: they were written by a "
            "newer lora-router; update this one, or name another database"
        )
    if there < VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program reads {VERSION}: they were written by a "
            "lora-router before 0.3. Export them with that one (`lora-router experiments export`), then name "
            "another database"
        )


def _version(conn: Connection) -> int | None:
    """None: the tables are not there."""
    if not inspect(conn).has_table(version.name):
        return None
    return conn.execute(select(version.c.version)).scalar_one_or_none()


class ColumnType(StrEnum):
    """What a column holds."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "true or false"
    TIME = "unix seconds"


class ViewColumn(NamedTuple):
    """One column. `source`: the tables' column, or an expression over them."""

    name: str
    holds: ColumnType
    means: str
    source: ColumnElement[Any]


@dataclass(frozen=True)
class View:
    """One view: what a row is, its columns, and the tables that it joins to those of all views."""

    name: str
    means: str
    columns: tuple[ViewColumn, ...]
    joined: FromClause

    @property
    def query(self) -> Select[Any]:
        """Its rows. `tables.phases` is among what it joins, so that a caller may narrow it to one."""
        selected = (column.source.label(column.name) for column in self.columns)
        return select(*selected).select_from(self.joined).where(experiments.c.name.is_not(None))


def _joined(first: FromClause, phase: ColumnElement[int]) -> FromClause:
    return first.join(phases, phase == phases.c.id).join(experiments, phases.c.experiment == experiments.c.id)


def _where(*more: ViewColumn) -> tuple[ViewColumn, ...]:
    place = (
        ViewColumn("experiment", ColumnType.TEXT, "its name", experiments.c.name),
        ViewColumn("phase", ColumnType.INTEGER, "the phase's number, from 1", phases.c.number),
    )
    return place + more


_UNIT = ViewColumn("unit", ColumnType.TEXT, "the unit's hash, 32 hexadecimal digits", units.c.unit)
_ARM = ViewColumn("arm", ColumnType.TEXT, "the unit's arm, that of its first exposure", units.c.arm)


def _if_counted(source: ColumnElement[float]) -> ColumnElement[float]:
    return case((values.c.n > literal_column("0"), source))


_UNITS = View(
    PREFIX + "v_units",
    "a unit that was exposed in a phase",
    _where(
        _UNIT,
        _ARM,
        ViewColumn("first_exposed", ColumnType.TIME, "when its window began", units.c.first),
        ViewColumn("answers", ColumnType.INTEGER, "responses to it in the phase", units.c.answers),
        ViewColumn("responses", ColumnType.INTEGER, "those of them within its window", units.c.responses),
        ViewColumn("degraded", ColumnType.FLAG, "an answer did not come from its arm", units.c.degraded),
        ViewColumn("crossed", ColumnType.FLAG, "it was shown more than one arm", units.c.crossed),
        ViewColumn(
            "segments",
            ColumnType.TEXT,
            "label to value of the plan's segments, as JSON; empty if it has none",
            units.c.segments,
        ),
    ),
    _joined(units, units.c.phase),
)
_OUTCOMES = View(
    PREFIX + "v_outcomes",
    "an outcome of a unit in a phase, also one of the server's own",
    _where(
        _UNIT,
        _ARM,
        ViewColumn("metric", ColumnType.TEXT, "the outcome's name", outcomes.c.metric),
        ViewColumn("value", ColumnType.NUMBER, "its value", outcomes.c.value),
        ViewColumn("time", ColumnType.TIME, "when it happened", outcomes.c.time),
        ViewColumn(
            "counted", ColumnType.FLAG, "happened and came in time, so not late", outcomes.c.late == 0
        ),
        ViewColumn(
            "key",
            ColumnType.TEXT,
            "the key that makes it count once, after `TENANT/` where clients have tenants",
            outcomes.c.key,
        ),
        ViewColumn(
            "response_id", ColumnType.TEXT, "of this response; empty: of the unit", outcomes.c.response_id
        ),
    ),
    _joined(outcomes.join(units, outcomes.c.unit_id == units.c.id), units.c.phase),
)
_VALUES = View(
    PREFIX + "v_values",
    "what was counted of a unit under one outcome's name that the phase reads",
    _where(
        _UNIT,
        _ARM,
        ViewColumn("metric", ColumnType.TEXT, "the outcome's name", values.c.metric),
        ViewColumn("n", ColumnType.INTEGER, "outcomes that were not late", values.c.n),
        ViewColumn("total", ColumnType.NUMBER, "their sum", values.c.total),
        ViewColumn(
            "largest", ColumnType.NUMBER, "the largest; null if n is 0", _if_counted(values.c.largest)
        ),
        ViewColumn("last", ColumnType.NUMBER, "the latest; null if n is 0", _if_counted(values.c.last)),
        ViewColumn(
            "before_n",
            ColumnType.INTEGER,
            "outcomes before the phase, where it reads them",
            values.c.before_n,
        ),
        ViewColumn("before_total", ColumnType.NUMBER, "their sum", values.c.before_total),
    ),
    _joined(values.join(units, values.c.unit_id == units.c.id), units.c.phase),
)
VIEWS: Mapping[str, View] = {"units": _UNITS, "outcomes": _OUTCOMES, "values": _VALUES}
"""What a reader calls it -> the view."""


def _make_views(conn: Connection) -> None:
    for view in VIEWS.values():
        compiled = view.query.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True})
        conn.exec_driver_sql(f"CREATE VIEW {view.name} AS {compiled}")
