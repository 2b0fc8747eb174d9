"""Distances → anomaly map → score → regions → threshold: pure functions, and the specification that says how to score."""
