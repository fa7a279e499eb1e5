"""TinyBERT's data augmentation: candidates for each word, and the variants drawn from them."""
