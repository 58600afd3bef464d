"""ExperimentService: experiments over gRPC, as a server shows them."""
