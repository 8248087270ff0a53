"""Experiments, for --config."""
