"""Commands of `lora-router route` that need no server."""
