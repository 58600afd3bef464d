"""A recipe and its data from a user's file."""
