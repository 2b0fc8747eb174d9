"""Stage 4: the class-aware memory bank, in memory and on disk; which class an image is of."""
