"""Adapters from elsewhere: a hub, an object store, another folder, for `adapters add`. No server fetches
anything. What plugins write and use is imported from here, for good.

`source` is what all sources have in common, `transfer` selects files and checks what came, `staging` has the
folder that they are copied into, and `adding` runs all of it.
"""

from router.sources.source import FolderSource, Listing, RemoteFile, state_of

__all__ = ["FolderSource", "Listing", "RemoteFile", "state_of"]
