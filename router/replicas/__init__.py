"""Several engines behind one: replicas in processes of their own, and who of them answers what."""
