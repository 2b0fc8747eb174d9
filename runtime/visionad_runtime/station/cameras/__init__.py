"""Cameras: one module a kind."""
