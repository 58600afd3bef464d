"""Adapter folders on disk: finding them, telling when they are still, and reading them whole."""
