"""Adapter folders on one side, leases of loaded versions on the other.

From a folder to READY, in the order to read: `registry` has the task that does everything in its turn;
`reconcile` makes the table agree with what `folders` finds and `format.artifact` checks; `version` is one
version and its state, `table` all of them with their defaults, `gate` says which are routed to; `loading`
begins loads, `probes` proves; `residency` makes room. `defaults` and `choices` have what operators chose,
`state` what survives a restart.
"""
