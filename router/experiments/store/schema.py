"""The versions of the tables, and the views over them.

A server brings its own database up to date when it opens it, step by step, in one transaction, on both kinds
of database. Steps are plain functions rather than Alembic's, so there is no second tool or folder of scripts
to ship. They change tables by name, since `tables.py` may have gone on. A newer database is refused.

Views are for people and programs that read the database themselves: the part of it that stays as it is. The
tables may change with any version; a view keeps its columns, and new ones come behind the old. Only
experiments that were not deleted are in them. They are made with the tables, and anew when their definition
changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    case,
    delete,
    insert,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from router.errors import ConfigError
from router.experiments.model import EARLY_SECONDS, Lifecycle
from router.experiments.store import tables
from router.experiments.store.identity import give_identity
from router.experiments.store.series import PhaseInfos, info_of
from router.experiments.store.session import WriteSession, follow_metrics, rebuild_all
from router.experiments.store.stretches import first_width
from router.experiments.store.tables import (
    PREFIX,
    experiments,
    outcomes,
    pairs,
    phases,
    units,
    values,
    version,
)
from router.shared.database import bulk_for

log = logging.getLogger(__name__)
VERSION = 6
SUMS_SINCE = 2
"""Sums of versions before this one lack something: they are made anew."""
EARLY_SINCE = 6
"""Before this version no guardrail was read early: running phases begin to."""


def migrate(conn: Connection) -> None:
    """Bring the tables to the newest version. The connection is the only writer: two servers that open
    one database at once come one after the other. Raises ConfigError if it is newer than this program."""
    there = _version(conn)
    if there is None:
        tables.metadata.create_all(conn)
        give_identity(conn)
    else:
        _refuse_newer(there)
        for number in range(there, VERSION):
            log.warning("the tables of experiments are taken from version %d to %d", number, number + 1)
            STEPS[number + 1](conn)
    if there is not None:
        bulk = bulk_for(conn.dialect.name)
        if there < EARLY_SINCE:
            _read_early(WriteSession(conn, bulk, PhaseInfos(bulk)))
        if there < SUMS_SINCE:
            rebuild_all(WriteSession(conn, bulk, PhaseInfos(bulk)))
    if there != VERSION:
        conn.execute(delete(version))
        conn.execute(insert(version).values(version=VERSION))


def check_version(conn: Connection) -> None:
    """Raises ConfigError if the tables are not there, or are of another version."""
    there = _version(conn)
    if there is None:
        raise ConfigError("there is no such database of experiments: it has no tables of lora-router")
    _refuse_newer(there)
    if there < VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program reads {VERSION}: start the server of "
            "this lora-router once, which takes them up to date"
        )


def _refuse_newer(there: int) -> None:
    if there > VERSION:
        raise ConfigError(
            f"the store's tables have version {there}, this program knows {VERSION}: they were written by a "
            "newer lora-router; update this one, or name another database"
        )


def _version(conn: Connection) -> int | None:
    """None: the tables are not there."""
    if not inspect(conn).has_table(version.name):
        return None
    return conn.execute(select(version.c.version)).scalar_one_or_none()


def _to_second(conn: Connection) -> None:
    """Third powers, when an outcome came, segments of units, and units of pairs."""
    number = "DOUBLE PRECISION" if conn.dialect.name == "postgresql" else "DOUBLE"
    added = [
        ("units", "segments", "TEXT", "''"),
        ("pairs", "unit", "TEXT", "''"),
        ("outcomes", "came", number, "0"),
    ]
    added += [("sums", f"c{i}", number, "0") for i in range(20)]
    for table, column, kind, default in added:
        conn.exec_driver_sql(
            f"ALTER TABLE {PREFIX}{table} ADD COLUMN {column} {kind} NOT NULL DEFAULT {default}"
        )
    tables.segment_values.create(conn, checkfirst=True)
    conn.exec_driver_sql(f"DROP INDEX IF EXISTS {PREFIX}pairs_result")


def _to_third(conn: Connection) -> None:
    """Where requests ended that have no whole answer."""
    conn.exec_driver_sql(f"ALTER TABLE {PREFIX}outcomes ADD COLUMN stage TEXT NOT NULL DEFAULT ''")


def _to_fourth(conn: Connection) -> None:
    """What people preferred in the playground."""
    tables.preferences.create(conn, checkfirst=True)


def _to_fifth(conn: Connection) -> None:
    """Which database it is."""
    tables.identity.create(conn, checkfirst=True)
    give_identity(conn)


def _to_sixth(_: Connection) -> None:
    """No table changes: see `_read_early`."""


def _read_early(session: WriteSession) -> None:
    """Running phases read built-in guardrails early from now on, in the stretches of time that they have."""
    of, conn = experiments.c, session.conn
    for row in conn.execute(select(of.id, of.document, of.etag).where(of.name.is_not(None))).all():
        experiment = tables.from_json(row.document, row.etag)
        last = experiment.phase
        if last is None or experiment.state is not Lifecycle.RUNNING:
            continue
        window = last.spec.window
        phase = replace(last, early=min(EARLY_SECONDS, window), width=first_width(window))
        kept = replace(experiment, phases=(*experiment.phases[:-1], phase))
        conn.execute(update(experiments).where(of.id == row.id).values(document=tables.to_json(kept)))
        here = select(phases.c.id).where(phases.c.experiment == row.id, phases.c.number == last.number)
        key = conn.execute(here).scalar_one()
        follow_metrics(session, info_of(key, kept.name, last), info_of(key, kept.name, phase))


STEPS: Mapping[int, Callable[[Connection], None]] = {
    2: _to_second,
    3: _to_third,
    4: _to_fourth,
    5: _to_fifth,
    6: _to_sixth,
}
"""Version -> what makes it out of the one before."""


OTHER_COLUMNS, STILL_READ = "42P16", "2BP01"  # SQLSTATE: of a view to replace, of one to drop


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
        ViewColumn("differed", ColumnType.FLAG, "two routers once chose differently", units.c.differed),
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
        ViewColumn(
            "stage",
            ColumnType.TEXT,
            "of error and cancelled: where the request ended (routing, lease, admission, prefill, stream)",
            outcomes.c.stage,
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
_PAIRS = View(
    PREFIX + "v_pairs",
    "a served answer and a shadow arm's to the same request, judged",
    _where(
        ViewColumn("arm", ColumnType.TEXT, "the shadow arm", pairs.c.arm),
        ViewColumn("response_id", ColumnType.TEXT, "the served answer's", pairs.c.response_id),
        ViewColumn("time", ColumnType.TIME, "when it was judged", pairs.c.time),
        ViewColumn("result", ColumnType.INTEGER, "1: the shadow won, 0: a tie, -1: it lost", pairs.c.result),
        ViewColumn("numbers", ColumnType.TEXT, "what the judge measured, as JSON", pairs.c.numbers),
        ViewColumn(
            "unit", ColumnType.TEXT, "the hash of the unit that asked; empty if there was none", pairs.c.unit
        ),
    ),
    _joined(pairs, pairs.c.phase),
)

VIEWS: Mapping[str, View] = {"units": _UNITS, "outcomes": _OUTCOMES, "values": _VALUES, "pairs": _PAIRS}
"""What a reader calls it -> the view."""


def make_views(conn: Connection) -> None:
    """Make those that are not there as they should be. The connection is the only writer, and the tables
    have the newest version."""
    there, postgres = _there(conn), conn.dialect.name == "postgresql"
    for view in VIEWS.values():
        statement = f"VIEW {view.name} AS {_text(view, conn)}"
        definition = _comment(view, statement) if postgres else f"CREATE {statement}"
        if there.get(view.name) == definition:
            continue
        if postgres:
            _make_postgres(conn, view, statement, definition)
        else:
            conn.exec_driver_sql(f"DROP VIEW IF EXISTS {view.name}")
            conn.exec_driver_sql(definition)


def _text(view: View, conn: Connection) -> str:
    compiled = view.query.compile(dialect=conn.dialect, compile_kwargs={"literal_binds": True})
    return str(compiled).replace("\n", "")


def _there(conn: Connection) -> dict[str, str]:
    """View -> what identifies its definition: SQLite keeps the statement, PostgreSQL a comment."""
    names = ", ".join(f"'{view.name}'" for view in VIEWS.values())
    if conn.dialect.name == "postgresql":
        found = f"""SELECT relname, obj_description(oid, 'pg_class') FROM pg_class
            WHERE relkind = 'v' AND pg_table_is_visible(oid) AND relname IN ({names})"""  # noqa: S608
    else:
        found = f"SELECT name, sql FROM sqlite_master WHERE type = 'view' AND name IN ({names})"  # noqa: S608
    return {row[0]: row[1] for row in conn.exec_driver_sql(found)}


def _comment(view: View, statement: str) -> str:
    """The comment on a view in PostgreSQL, with a digest of its definition."""
    means = "\n".join((statement, view.means, *(f"{c.name}: {c.means}" for c in view.columns)))
    return f"One row: {view.means}. (definition {sha256(means.encode()).hexdigest()[:16]})"


def _make_postgres(conn: Connection, view: View, statement: str, definition: str) -> None:
    """In place where that is possible: what was granted on it, and views that read it, stay."""
    if _done(conn, f"CREATE OR REPLACE {statement}", unless=OTHER_COLUMNS):
        pass
    elif _done(conn, f"DROP VIEW {view.name}", unless=STILL_READ):
        conn.exec_driver_sql(f"CREATE {statement}")
        log.warning("the view %s has other columns now: grant again what was granted on it", view.name)
    else:
        log.warning("the view %s stays as it was: drop the views that read it, then start again", view.name)
        return
    for comment in _comments(view, definition):
        conn.exec_driver_sql(comment)


def _done(conn: Connection, statement: str, unless: str) -> bool:
    """Whether it was done; False if the server refuses it with this SQLSTATE."""
    try:
        with conn.begin_nested():
            conn.exec_driver_sql(statement)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != unless:
            raise
        return False
    return True


def _comments(view: View, definition: str) -> Iterator[str]:
    yield f"COMMENT ON VIEW {view.name} IS {_quoted(definition)}"
    for column in view.columns:
        means = f"{column.holds}: {column.means}"
        yield f"COMMENT ON COLUMN {view.name}.{column.name} IS {_quoted(means)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
