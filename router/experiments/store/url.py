"""Where the database is: an URL as people write it, made exact or refused with what to do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError

from router.errors import ConfigError

EXAMPLES = "sqlite:////var/lib/lora-router/experiments.db or postgresql://user:password@host/database"
DRIVERS = {
    "sqlite": ("sqlite", "sqlite3", ""),
    "sqlite+pysqlite": ("sqlite", "sqlite3", ""),
    "postgresql": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgres": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgresql+pg8000": ("postgresql+pg8000", "pg8000", "install lora-router[postgres]"),
    "postgresql+psycopg": ("postgresql+psycopg", "psycopg", "install psycopg[binary]"),
}


def parse(text: str) -> URL:
    """The URL with its driver; the folder of a SQLite file is made. Raises ConfigError."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"the store's URL cannot be read; it looks like {EXAMPLES}") from error
    if url.drivername not in DRIVERS:
        known = ", ".join(DRIVERS)
        raise ConfigError(f"the store's URL begins with {url.drivername!r}; known are {known}: {EXAMPLES}")
    driver, module, remedy = DRIVERS[url.drivername]
    if find_spec(module) is None:
        raise ConfigError(f"the store at {shown(url)} needs the Python package {module}: {remedy}")
    return _file(url) if driver == "sqlite" else _server(url.set(drivername=driver))


def shown(url: URL) -> str:
    """As it may be logged: without the password."""
    return url.render_as_string(hide_password=True)


def _file(url: URL) -> URL:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:") or url.host:
        raise ConfigError(
            "the store's URL names no file, and what is kept in memory is lost: "
            "write sqlite:///FILE for a relative path, sqlite:////FOLDER/FILE for an absolute one"
        )
    path = Path(url.database).expanduser().absolute()
    try:
        is_folder = path.is_dir()
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the store's folder {path.parent} cannot be made or entered: {error.strerror}"
        ) from error
    if is_folder:
        raise ConfigError(f"the store {path} is a folder; name a file in it, such as {path}/experiments.db")
    return url.set(drivername="sqlite", database=str(path))


def _server(url: URL) -> URL:
    if not url.database:
        raise ConfigError(f"the store's URL {shown(url)} names no database: write postgresql://HOST/DATABASE")
    if not url.username:
        raise ConfigError(
            f"the store's URL {shown(url)} names no user: write postgresql://USER@HOST/DATABASE"
        )
    return url
