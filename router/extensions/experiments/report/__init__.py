"""Reports: an experiment judged from the store's sums, in plain values that servers and clients share."""
