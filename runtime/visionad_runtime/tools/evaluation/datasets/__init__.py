"""Data sets on disk as lists of images with labels and masks: one module a layout, found by ``registry``."""
