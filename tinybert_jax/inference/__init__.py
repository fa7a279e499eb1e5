"""The predict step, the predictor, and `evaluate`."""
