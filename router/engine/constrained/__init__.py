"""Answers with a shape: constraints compiled to grammars, and each answer's way through its grammar."""
