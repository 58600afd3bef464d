"""Who calls, and what they may do. Knows no gRPC: `router/server/layers.py` asks it at every call."""
