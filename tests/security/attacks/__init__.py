"""Small programs that attack a server over the network, for tests and benchmarks."""
