"""What gives targets to an objective, and the cache of their outputs."""
