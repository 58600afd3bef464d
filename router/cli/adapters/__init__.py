"""`lora-router adapters ...`: adapters of a server and adapter folders, from training to report."""
