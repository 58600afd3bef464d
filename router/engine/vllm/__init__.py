"""vLLM as the engine: its processes hold the base and compute, ours choose adapters and speak with clients.

Only `link` imports vLLM, so everything else is tested without it.
"""
