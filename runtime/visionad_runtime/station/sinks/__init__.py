"""Sinks: one module a kind."""
