"""From raw text to shards of token sequences."""
