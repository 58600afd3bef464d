"""Who should have answered: what callers say of it, kept so that routing can learn from it."""
