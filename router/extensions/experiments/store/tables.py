"""The tables. `outcomes`, `exposures` and `units` are what happened; `sums` and the like keep up with them.

All numbers of a unit or a phase are kept in the transaction that keeps the rows, so they cannot drift
apart. Rows that come in bulk have no foreign keys: one writer at a time makes them (see `session.py`), and
checking each would cost more than the rest.

An experiment itself is kept as a JSON document (`to_json`).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)

from router.extensions.experiments.model import Experiment

if TYPE_CHECKING:
    from pydantic import TypeAdapter

metadata = MetaData()
PREFIX = "lora_router_"  # a database may hold other programs' tables
NUMBER = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER is a rowid there
COLUMNS, PRODUCTS, CUBES = 4, 10, 20  # of Moments: value and covariate, each of which a ratio has twice


def _table(name: str, *parts: Any, clustered: bool = False, lasting: bool = False) -> Table:
    """`clustered`: SQLite keeps the rows in the primary key's order and no second copy of the key.

    `lasting`: an id is never given out again, not even after its row was deleted.
    """
    options: dict[str, Any] = {"sqlite_with_rowid": not clustered, "sqlite_autoincrement": lasting}
    return Table(PREFIX + name, metadata, *parts, **options)


def _text(name: str, **options: Any) -> Column[str]:
    return Column(name, Text, nullable=False, **options)


def _count(name: str) -> Column[int]:
    return Column(name, NUMBER, nullable=False)


def _real(name: str, **options: Any) -> Column[float]:
    return Column(name, Double, nullable=False, **options)


def _flag(name: str) -> Column[bool]:
    return Column(name, Boolean, nullable=False)


version = _table("schema_version", Column("version", Integer, primary_key=True))
salts = _table("salts", _text("purpose", primary_key=True), _text("salt"))

experiments = _table(
    "experiments",
    Column("id", NUMBER, primary_key=True),
    Column("name", Text, unique=True),  # NULL: deleted, and its rows are still being removed
    _text("etag"),
    _text("document"),
    lasting=True,
)
phases = _table(
    "phases",
    Column("id", NUMBER, primary_key=True),
    Column("experiment", NUMBER, ForeignKey(experiments.c.id), nullable=False),
    Column("number", Integer, nullable=False),
    _real("started"),
    _real("peak"),
    UniqueConstraint("experiment", "number"),
    lasting=True,
)
audit = _table(
    "audit",
    Column("id", NUMBER, primary_key=True),
    _text("experiment", index=True),
    _real("time"),
    _text("actor"),
    _text("act"),
    _text("reason"),
    _text("detail"),  # JSON
)

units = _table(
    "units",
    Column("id", NUMBER, primary_key=True, autoincrement=False),
    _text("unit"),
    _count("phase"),
    _text("arm"),
    _real("first"),
    _count("stretch"),
    _count("answers"),
    _count("responses"),  # answers within the window
    _flag("degraded"),
    _flag("crossed"),
    _text("segments", server_default=""),  # JSON: label -> value; empty where the plan has no segments
    UniqueConstraint("unit", "phase"),
)
exposures = _table(
    "exposures",
    _text("response_id"),
    _count("phase"),
    _count("unit_id"),
    _real("time"),
    PrimaryKeyConstraint("response_id", "phase"),
    Index(f"{PREFIX}exposures_unit", "unit_id"),
)
digests = _table(
    "digests",
    _count("phase"),
    _text("arm"),
    _text("digest"),
    _count("place"),
    PrimaryKeyConstraint("phase", "arm", "digest"),
    clustered=True,
)
outcomes = _table(
    "outcomes",
    _text("key"),
    _count("phase"),  # 0: no exposure yet
    Column("unit_id", NUMBER),
    _text("metric"),
    _real("value"),
    _real("time"),
    _text("response_id"),
    _text("experiment"),
    _text("unit"),
    Column("late", SmallInteger, nullable=False),
    _real("received"),  # when the row was written: those that wait are removed by it
    _real("came", server_default="0"),  # `Outcome.received`, which tells whether it is late
    PrimaryKeyConstraint("key", "phase"),
)
WAITING = outcomes.c.phase == literal_column("0")  # no parameter: a partial index must be seen to fit
Index(f"{PREFIX}outcomes_unit", outcomes.c.unit_id)
for _name in ("response_id", "unit", "received"):
    Index(f"{PREFIX}waiting_{_name}", outcomes.c[_name], sqlite_where=WAITING, postgresql_where=WAITING)

values = _table(
    "values",
    _count("unit_id"),
    _text("metric"),
    _count("n"),
    _real("total"),
    _real("largest"),
    _real("last"),
    _real("last_time"),
    _count("before_n"),
    _real("before_total"),
    PrimaryKeyConstraint("unit_id", "metric"),
    clustered=True,
)

_PLACE = ("phase", "arm")
cohorts = _table(
    "cohorts",
    _count("phase"),
    _text("arm"),
    _count("stretch"),
    *(_count(name) for name in ("exposed", "degraded", "crossed", "answers", "late", "unserved")),
    PrimaryKeyConstraint(*_PLACE, "stretch"),
    clustered=True,
)
sums = _table(
    "sums",
    _count("phase"),
    _text("arm"),
    _count("stretch"),
    _text("metric"),  # the series: a metric, or a metric by segment (`series.py`)
    _count("answered"),
    _count("n"),
    *(_real(f"s{i}") for i in range(COLUMNS)),
    *(_real(f"p{i}") for i in range(PRODUCTS)),
    *(_real(f"c{i}", server_default="0") for i in range(CUBES)),
    PrimaryKeyConstraint(*_PLACE, "stretch", "metric"),
    clustered=True,
)


@cache
def _adapter() -> TypeAdapter[Experiment]:
    from pydantic import TypeAdapter

    return TypeAdapter(Experiment)


def to_json(experiment: Experiment) -> str:
    """The document; the etag has its own column."""
    return _adapter().dump_json(experiment, exclude={"etag", "warnings"}).decode()


def from_json(document: str, etag: str) -> Experiment:
    """The experiment of a document. Raises ValueError if it is none."""
    from dataclasses import replace

    return replace(_adapter().validate_json(document), etag=etag)
