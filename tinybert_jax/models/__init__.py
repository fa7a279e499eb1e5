"""Encoders and heads in Flax Linen, their configuration and their parameters."""
