"""Stage 1: where images come from. Bytes, files, folders and arrays to pixels."""
