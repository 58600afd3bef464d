"""What may be done with an experiment, and when: plans are checked, phases opened, arms promoted."""
