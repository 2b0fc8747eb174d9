"""Data sets, metrics and tables: what ``visionad eval`` is made of."""
