"""Worker process: frames, checks, judging, archive."""
