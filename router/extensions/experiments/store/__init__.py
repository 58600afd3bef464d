"""Where experiments, exposures and outcomes are kept."""
