"""Overlays, contact sheets and HTML pages from templates."""
