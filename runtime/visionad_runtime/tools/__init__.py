"""Evaluation, benchmark, demo and diagnosis. No layer below imports this package."""
