"""A search for the smallest student that reaches an aim: candidates, successive halving, the Pareto front."""
