"""Adapter folders on one side, leases of loaded versions on the other.

From a folder to READY, in the order to read: `watching` looks again and again; `reconcile` makes the table
agree with what `disk.places` finds and what `disk.reading` and `format.artifact` say of it; `record` is a
version and its state, `index` the table with its defaults; `planner` begins loads that are missing, `loading`
reads, proves and flips, `residency` makes room. Beside that way stand `leases`, the gate (`gate`,
`gatekeeper`), `conflicts` of folders, and the `state` that survives a restart.
"""
