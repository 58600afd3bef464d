"""Built-in plugins: each module here is one, found by its place and loaded as any other plugin is.

The core imports none of them, and none imports another.
"""
