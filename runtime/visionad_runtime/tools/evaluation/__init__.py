"""``visionad eval``: data sets, metrics and tables."""
