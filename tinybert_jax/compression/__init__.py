"""What makes a model smaller beside distillation: methods that act at once, and methods that act in training."""
