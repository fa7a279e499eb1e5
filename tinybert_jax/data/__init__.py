"""From files to batches: reading, checking, tokenising, bucketing."""
