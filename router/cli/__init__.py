"""The command line, and the only place that picks concrete classes."""
