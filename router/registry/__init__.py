"""Adapter folders on one side, leases of loaded versions on the other.

From a folder to READY, in the order to read: `watching` looks again and again; `reconcile` makes the table
agree with what `folders` finds and `format.artifact` checks; `record` is a version and its state, `index` the
table with its defaults, `gate` says which versions are routed to; `loading` begins loads, reads, proves and
flips; `residency` makes room; `registry` leases. `state` is what survives a restart.
"""
