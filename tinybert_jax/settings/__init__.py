"""What a run is: tasks, sources, stages, experiments. Frozen dataclasses; no array library is imported."""
