"""Worker process: frames, checks, archive."""
