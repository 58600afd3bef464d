"""Long runs against a whole server: does anything grow, and does every answer come from where it says?

`python -m tests.soak` looks for leaks, `python -m tests.soak.answers` checks very many answers.
"""
