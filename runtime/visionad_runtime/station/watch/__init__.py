"""Watch a folder: files that arrive, and their journal."""
