"""Adapters from elsewhere: a hub, an object store, another folder. For `adapters add`, and for servers with a
store among their adapters folders, which `mirror` follows; no request makes a server fetch anything. What
plugins write and use is imported from here, for good.

In the order of their use: `specifier` reads what the user wrote, `source` is what all sources have in common,
with `hub`, `objects` and `local` behind it; `choice` selects files, `transfer` copies them into a folder made
by `staging`, `origin` is the record that stays with the adapter, `adapters_folder` finds where
versions are, and `adding` runs all of it.
"""

from router.sources.source import Check, FolderSource, Listing, Passing, RemoteFile, StartOver, state_of

__all__ = ["Check", "FolderSource", "Listing", "Passing", "RemoteFile", "StartOver", "state_of"]
