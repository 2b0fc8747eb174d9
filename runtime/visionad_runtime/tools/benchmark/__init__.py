"""``visionad bench``: cost of an inspection by stage, side by side with the bare engine and other backends."""
