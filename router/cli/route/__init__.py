"""`lora-router route ...`: where requests go, and how well."""
