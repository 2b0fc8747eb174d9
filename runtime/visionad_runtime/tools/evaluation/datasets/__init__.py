"""Data set layouts: one module per layout, found by ``registry``."""
