"""One server for each peer; all of them serve the agents of `benchmarks.agents`."""
