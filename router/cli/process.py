"""The process of `serve`: what it sets up before the server, and how it ends."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
from functools import partial
from typing import NoReturn

from router.cli.compose import Composition
from router.cli.engines import engine_of
from router.cli.plugins import host_of
from router.cli.summary import print_summary
from router.config import Settings
from router.server.app import ServerApp
from router.server.listen import check_free
from router.server.logs import logging_to


def serve_until_stopped(settings: Settings) -> int:
    """Fetch the base with a progress bar, then serve; returns the exit code.

    Raises ConfigError, for an address that is in use before anything is fetched or loaded.

    From the first signal on a clock runs that no thread can hold up. If it runs out, the stacks of all
    threads go to standard error and the exit code is 1.
    """
    check_free(settings)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # no bars in a log
    # Read when torch is loaded, and of use where torch's own operations compute. Threads that sleep at once
    # make them half as fast, those that watch for work for long take the core from everybody else.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    plugins = host_of(settings)
    plugins.refresh()
    plugins.check_tables()
    engine, model = engine_of(settings, plugins)
    composition = Composition(settings, engine, model, plugins)

    def summarise(app: ServerApp) -> None:
        print_summary(app, composition.plugins.status(), composition.router.rule.status)

    with logging_to(settings.log_level):
        asyncio.run(composition.run(summarise, partial(faulthandler.dump_traceback_later, exit=True)))
    if composition.app.engine_hangs:
        _leave_at_once()
    return 0


def _leave_at_once() -> NoReturn:
    """End without waiting for a thread that hangs; nothing is left to be written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
