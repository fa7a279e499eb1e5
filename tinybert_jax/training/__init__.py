"""The step, the loop and the record of a run."""
