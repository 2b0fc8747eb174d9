"""Distances → anomaly map → score → regions → threshold, as pure functions, and the specification of the score."""
