"""Statistics that stay valid however often one looks, from sums that are kept up to date."""
