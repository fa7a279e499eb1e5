"""From files to batches: reading, checking, tokenizing, bucketing."""
