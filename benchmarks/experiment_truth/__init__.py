"""`python -m benchmarks.experiment_truth --section NAME`: is what experiments say true?

A section is a module here with `arguments(parser)`, which adds its options, and `run(asked)`, which
simulates, prints, writes `results/experiment-NAME.md` unless `--dry`, and returns whether all targets
are met.
"""
