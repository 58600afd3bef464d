"""Experiments at run time: who is assigned, what is recorded, what acts by itself."""
