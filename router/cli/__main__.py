"""`python -m router.cli` is `lora-router`."""

from router.cli.main import main

main()
