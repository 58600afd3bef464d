"""Experiments: who gets which arm, what is kept of it, what the outcomes say, and what may be done about it.

One slice from the command line to the database, which nothing outside imports: `plugin` adds it to a server,
which meets it through `router.ports`. `assignment`, `stats` and the verdicts are pure code: no state
and no clock.
"""
