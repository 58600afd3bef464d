"""Adapters from elsewhere: a hub, an object store, another folder. For `adapters add`, and for servers with a
store among their adapters folders, which `mirror` follows; no request makes a server fetch anything. What
plugins write and use is imported from here, for good.

`source` is what all sources have in common, `transfer` selects files and copies them, `staging` has the
folder that they are copied into, and `adding` runs all of it for `adapters add`. A mirror follows a store:
`store` lists it and finds what is finished there, `fetching` brings one folder, by way of a cache, and
`mirror` does it again and again.
"""

from router.sources.source import Check, FolderSource, Listing, Passing, RemoteFile, StartOver, state_of

__all__ = ["Check", "FolderSource", "Listing", "Passing", "RemoteFile", "StartOver", "state_of"]
