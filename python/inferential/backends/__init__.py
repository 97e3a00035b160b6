"""The ways to the models."""
