"""The gRPC server. Nothing here imports torch."""
