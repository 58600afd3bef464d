"""Experiments as pure code: who gets which arm, what the outcomes say, and what may be done about it.

Nothing here keeps state, reads a clock or knows gRPC, torch, the server or the engine.
"""
