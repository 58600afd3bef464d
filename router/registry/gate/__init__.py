"""The gate: a version is routed to by itself only if its report shows that it is worth it."""
