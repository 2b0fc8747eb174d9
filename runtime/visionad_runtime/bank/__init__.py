"""Stage 4: the class-aware memory bank, in memory and on disk, and routing of images to classes."""
