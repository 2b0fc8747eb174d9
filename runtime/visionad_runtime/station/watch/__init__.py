"""Files that arrive in a folder: each once and whole, their journal, and the loop of ``visionad watch``."""
