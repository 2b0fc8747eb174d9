"""Qualification: prove a station before it goes live, and choose what runs on it."""
