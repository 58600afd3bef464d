"""A folder that follows an object store: what is under a prefix there is here, seconds later.

`store` lists the prefix, `survey` says which folders are finished there, `fetching` brings one, by way of
`cache`, which keeps files by the digest of their bytes, `deliveries` has several brought at a time, `copies`
is the folder that servers watch, and `mirror` does all of it again and again.
"""
