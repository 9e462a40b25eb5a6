"""Runs of the trainer from outside: their metrics, their comparison, their launch."""
