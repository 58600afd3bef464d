"""Connections of pg8000 whose sockets are closed whatever happens.

The driver says goodbye before it closes, which raises where the server is gone, and it leaves a socket
open where the server refuses: outages would be told at length in the log, and leak until collected.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from typing import Any


def connect_pg8000(
    answer: float, dialect: Any, _record: object, arguments: Any, named: dict[str, Any]
) -> Any:
    """For SQLAlchemy's event `do_connect`. Every answer of the server may take `answer` seconds."""
    driver = dialect.loaded_dbapi
    if named.get("unix_sock"):
        return driver.connect(*arguments, **named)
    rest = {**named}
    where, timeout = (rest.pop("host", "localhost"), rest.pop("port", 5432)), rest.pop("timeout", None)
    try:
        sock = socket.create_connection(where, timeout)
    except OSError as error:
        raise driver.InterfaceError(f"{where[0]}:{where[1]}: {error.strerror or error}") from error
    sock.settimeout(answer)
    try:
        return _closing(driver)(sock, *arguments, **rest)
    except BaseException:
        _close(sock)
        raise


@cache
def _closing(driver: Any) -> Any:
    class Closing(driver.Connection):  # type: ignore[misc]
        def __init__(self, own: socket.socket, *arguments: Any, **named: Any) -> None:
            self.own = own  # before the driver begins to speak: it closes if that fails
            super().__init__(*arguments, sock=own, **named)

        def close(self) -> None:
            try:
                with suppress(driver.InterfaceError):
                    super().close()
            finally:
                _close(self.own)

    return Closing


def _close(sock: socket.socket) -> None:
    """Also where a stream still holds it."""
    handle = sock.detach()
    if handle >= 0:
        os.close(handle)
