"""The plugin host."""
