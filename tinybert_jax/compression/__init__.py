"""Compression methods beside distillation: some change a model at once, others act during training."""
