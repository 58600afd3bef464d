"""Classifiers: what one is, how plugins register them, how faults are kept apart, what they may build on."""
