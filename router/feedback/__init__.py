"""Feedback on answers: the latest answers in memory, and what users think of them in a database."""
