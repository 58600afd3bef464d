"""Adapters from elsewhere: a hub, an object store, another folder. For the command line alone: a server reads
its adapters folders and fetches nothing.

In the order of their use: `said` reads what the user wrote, `source` is what all sources have in common, with
`hub`, `objects` and `local` behind it; `choice` says which files are taken, `transfer` brings them into a
folder made by `staging`, `origin` is the record that stays beside the adapter, `shelf` knows where versions
stand, and `adding` does all of it.
"""
