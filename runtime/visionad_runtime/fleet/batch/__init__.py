"""Inspect archives in blocks: Parquet in and out, restartable, on one machine, any scheduler, or Ray. Needs the extra ``batch``."""
