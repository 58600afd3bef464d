"""Adapter folders on disk: finding them, watching them, and telling when one is whole."""
