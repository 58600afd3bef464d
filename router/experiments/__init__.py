"""Experiments: who gets which arm, what is kept of it, what the outcomes say, and what may be done about it.

Nothing here knows gRPC, torch, the server or the engine. `assignment`, `stats` and the verdicts are pure
code: no state and no clock.
"""
