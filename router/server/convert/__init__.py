"""The only code that knows both proto messages and `router.types`."""
